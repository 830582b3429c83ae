-- Version 1. What a person may want to know who opens the file with another tool.

-- One row for each session, tombstones included. It is written when a session begins, ends or is pruned, not with each
-- record: where a session stands is told by its last record, or, if it has none, by position, experience and
-- last_used_at here. A key is never given to a second (id, incarnation).
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    incarnation INTEGER NOT NULL, -- 64 bits, as a signed number
    digest TEXT NOT NULL,
    owner TEXT NOT NULL,
    created_at REAL NOT NULL,
    last_used_at REAL NOT NULL,
    position INTEGER NOT NULL,
    experience INTEGER NOT NULL,
    pruned INTEGER NOT NULL, -- records up to this ordinal are gone
    ended TEXT NOT NULL,
    ended_at REAL NOT NULL,
    crc INTEGER NOT NULL
);

-- A log, in the order of commits: a record replaces those of its session with the same or a later ordinal that stand
-- before it. There is no second index, so that a commit writes the last page and nothing else; small columns come
-- first, so that reading them does not touch the pages of large bodies.
CREATE TABLE records (
    row INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    position INTEGER NOT NULL,
    experience INTEGER NOT NULL,
    at REAL NOT NULL,
    crc INTEGER NOT NULL, -- of the columns before
    body BLOB NOT NULL -- carries a checksum of its own
);

CREATE TABLE snapshots (
    row INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    position INTEGER NOT NULL,
    experience INTEGER NOT NULL,
    at REAL NOT NULL,
    state BLOB NOT NULL -- carries a checksum of its own
);
CREATE UNIQUE INDEX snapshots_by_session ON snapshots (session, ordinal);
