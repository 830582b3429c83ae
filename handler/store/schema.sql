-- Version 1. What a person may want to know who opens the file with another tool.
--
-- Records are a log, in the order of commits, and each points to the one before it of its session; where that chain
-- ends is told by its session's row, which is written once for many records ("settled"). So a commit writes the last
-- page of the log and no other. An index on (session, ordinal), or records that lie by session, would have a page of
-- its own for each session that goes on. Processor time and log of a commit, 250-byte bodies, 20,000 sessions with ten
-- records each, SQLite 3.40, on the machine of docs/performance.md:
--
--                                  1 record          64 records of 64 sessions
--     log with pointers            12 µs    5 KB      160 µs    36 KB
--     and the sessions' rows       18 µs    9 KB      400 µs   284 KB
--     log with an index            16 µs   10 KB      440 µs   329 KB
--     records by session           24 µs   15 KB      910 µs   671 KB

-- One row for each session, tombstones included: who it is, and where it stands.
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    incarnation INTEGER NOT NULL, -- 64 bits, as a signed number
    digest TEXT NOT NULL,
    owner TEXT NOT NULL,
    created_at REAL NOT NULL,
    ended TEXT NOT NULL,
    ended_at REAL NOT NULL,
    crc INTEGER NOT NULL, -- of the columns before
    ordinal INTEGER NOT NULL,
    position INTEGER NOT NULL,
    experience INTEGER NOT NULL,
    last_used_at REAL NOT NULL,
    row INTEGER NOT NULL, -- of its last record; 0: none
    total INTEGER NOT NULL, -- bytes of its bodies since it began
    pruned INTEGER NOT NULL, -- records up to this ordinal are gone,
    pruned_total INTEGER NOT NULL, -- and these bytes of the total
    standing_crc INTEGER NOT NULL -- of the key and the columns behind `crc`
);
CREATE INDEX tombstones ON sessions (ended_at) WHERE ended != '';

-- Up to this row of `records`, the rows of `sessions` say where these stand; behind it, the last record of each does.
CREATE TABLE settled (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    row INTEGER NOT NULL,
    crc INTEGER NOT NULL
);

-- Small columns come first, so that reading them does not touch the pages of large bodies.
CREATE TABLE records (
    row INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    position INTEGER NOT NULL,
    experience INTEGER NOT NULL,
    at REAL NOT NULL,
    previous INTEGER NOT NULL, -- row of the session's record before it, if that is not pruned
    total INTEGER NOT NULL, -- bytes of the session's bodies up to this one
    crc INTEGER NOT NULL, -- of the columns before
    body BLOB NOT NULL -- carries a checksum of its own
);

-- Records that nobody needs and that are not deleted yet: each row stands for one and those before it of its session.
CREATE TABLE garbage (
    row INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    above INTEGER NOT NULL, -- the ordinal before the first of them
    crc INTEGER NOT NULL
);

CREATE TABLE snapshots (
    session INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    position INTEGER NOT NULL,
    experience INTEGER NOT NULL,
    at REAL NOT NULL,
    size INTEGER NOT NULL, -- of its state
    state INTEGER NOT NULL, -- row of `states`
    record INTEGER NOT NULL, -- row of the record of this ordinal; 0: none
    total INTEGER NOT NULL, -- bytes of the session's bodies up to there
    step INTEGER NOT NULL, -- 1: the session may be pruned up to here (prunable.py)
    PRIMARY KEY (session, ordinal)
) WITHOUT ROWID;
CREATE INDEX steps ON snapshots (at) WHERE step;

CREATE TABLE states (
    row INTEGER PRIMARY KEY,
    state BLOB NOT NULL -- carries a checksum of its own
);
