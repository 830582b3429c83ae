"""Sessions as the SQLite file has them, and how to find their records: see `schema.sql`."""

import logging
import sqlite3
import struct
import zlib
from typing import Any, NamedTuple

from dnc_serve.handler.store.contract import Head

logger = logging.getLogger(__name__)

RECORD_COLUMNS = struct.Struct("<qqqqqdqq")  # those that the checksum of a record's row is of
_STANDING_COLUMNS = struct.Struct("<qqqqdqqqq")
_SELECT_TAIL = """
SELECT row, session, ordinal, position, experience, at, previous, total, crc FROM records WHERE row > ? ORDER BY row
"""
_WALK = """
WITH RECURSIVE chain (row, ordinal) AS (
    VALUES (:row, :ordinal)
    UNION ALL
    SELECT records.previous, records.ordinal - 1 FROM chain JOIN records ON records.row = chain.row
    WHERE records.session = :session AND records.ordinal = chain.ordinal AND chain.ordinal > :first
)
SELECT row, ordinal FROM chain
"""


class Session(NamedTuple):
    """Who a session is."""

    key: int
    id: str
    incarnation: int
    digest: str
    owner: str
    created_at: float
    ended: str
    ended_at: float


class Standing(NamedTuple):
    """A session, and where it stands."""

    session: Session
    ordinal: int
    position: int
    experience: int
    at: float
    row: int
    total: int
    pruned: int
    pruned_total: int

    def head(self) -> Head:
        session = self.session
        return Head(
            session.id, session.incarnation, session.digest, session.owner, session.created_at, self.at,
            self.position, self.experience, self.ordinal, session.ended, session.ended_at,
        )  # fmt: skip

    def columns(self) -> tuple[Any, ...]:
        """The row of `sessions`."""
        key, session_id, incarnation, *others = self.session
        session = (key, session_id, to_signed(incarnation), *others)
        return (*session, zlib.crc32(repr(session).encode()), *self.standing_columns())

    def standing_columns(self) -> tuple[Any, ...]:
        """Those that change with each record."""
        standing = self[1:]
        return (*standing, zlib.crc32(_STANDING_COLUMNS.pack(self.session.key, *standing)))

    @classmethod
    def of_columns(cls, row: tuple[Any, ...]) -> "Standing | None":
        """What a row of `sessions` says; None, and a word in the log, if it is damaged."""
        session, crc, standing, standing_crc = row[:8], row[8], row[9:17], row[17]
        try:
            if (
                zlib.crc32(repr(session).encode()) == crc
                and zlib.crc32(_STANDING_COLUMNS.pack(row[0], *standing)) == standing_crc
            ):
                key, session_id, incarnation, *others = session
                return cls(Session(key, session_id, to_unsigned(incarnation), *others), *standing)
        except struct.error:  # a flipped bit can change a column's type
            pass
        logger.error("row %s of sessions is damaged: that session is lost", row[0])
        return None


class Sessions:
    """What is kept in memory: where those stand that were written to lately, and with them all whose rows don't say
    so yet."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.standings: dict[str, Standing] = {}
        self.claimed: set[str] = set()  # ids of those whose rows don't say so yet although no record does
        self.settled = _settled(connection)
        self.last_row: int
        self.last_key: int
        self.size_bytes: int
        self.last_row, self.last_key, self.size_bytes = connection.execute(
            # Rows up to the settled one are not given again, also where they were deleted.
            "SELECT max(?, coalesce((SELECT max(row) FROM records), 0)), coalesce((SELECT max(key) FROM sessions), 0), "
            "CAST((SELECT total(total - pruned_total) FROM sessions) + (SELECT total(size) FROM snapshots) AS INTEGER)",
            (self.settled,),
        ).fetchone()
        self._read_tail(connection)

    def _read_tail(self, connection: sqlite3.Connection) -> None:
        """The records that are not settled."""
        last: dict[int, tuple[Any, ...]] = {}
        damaged: list[int] = []
        for record in connection.execute(_SELECT_TAIL, (self.settled,)):
            if is_whole_record(record):
                last[record[1]] = record
            else:
                logger.error("row %d of records is damaged", record[0])
                damaged.append(record[1])
        # A key whose session's row is gone may still stand in records that were not deleted yet.
        self.last_key = max(self.last_key, *last, 0)
        for row in connection.execute(
            "SELECT * FROM sessions WHERE key IN (SELECT session FROM records WHERE row > ?)", (self.settled,)
        ):
            standing = Standing.of_columns(row)
            if standing is None or standing.session.ended:
                continue
            key = standing.session.key
            if key in last and last[key][2] > standing.pruned:
                row, _, ordinal, position, experience, at, _, total, _ = last[key]
                self.size_bytes += total - standing.total
                pruned = standing[-2:]
                standing = Standing(standing.session, ordinal, position, experience, at, row, total, *pruned)
            if key in damaged:
                # Whether a damaged one was in the middle or the last can't be told: claim one more than there is, so
                # that whoever reads the session finds a record missing instead of a session that ends too early.
                standing = standing._replace(ordinal=standing.ordinal + damaged.count(key))
                self.claimed.add(standing.session.id)
            self.standings[standing.session.id] = standing

    def settle(self, row: int, known_at_most: int) -> None:
        """Up to this row of the records, the rows of the sessions say where these stand."""
        self.settled = row
        self.claimed.clear()
        if len(self.standings) > known_at_most:
            # Not out of the same dict: a reader looks there first, and then at the rows.
            self.standings = {one: standing for one, standing in self.standings.items() if standing.row > row}


def find(connection: sqlite3.Connection, session_id: str) -> Standing | None:
    """Where a session stands, as its row says."""
    row = connection.execute("SELECT * FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return None if row is None else Standing.of_columns(row)


def rows_of(connection: sqlite3.Connection, standing: Standing, first: int, last: int) -> list[int]:
    """Rows of the session's records from one ordinal to another, up to the first that is lost."""
    key = standing.session.key
    # Along the chain, from the next snapshot on or from the end.
    ordinal, row = connection.execute(
        "SELECT ordinal, record FROM snapshots WHERE session = ? AND ordinal BETWEEN ? AND ? AND record > 0 "
        "ORDER BY ordinal LIMIT 1",
        (key, last, standing.ordinal),
    ).fetchone() or (standing.ordinal, standing.row)
    start = {"row": row, "ordinal": ordinal, "session": key, "first": first}
    chain = connection.execute(_WALK, start).fetchall()
    if chain[-1][1] != first:
        now = find(connection, standing.session.id)
        if now is None or now.session.key != key or now.pruned > standing.pruned:
            return []  # they are gone meanwhile
        # A link is damaged: whatever is left is looked for.
        query = "SELECT row, ordinal FROM records WHERE session = ? AND ordinal BETWEEN ? AND ? ORDER BY row DESC"
        chain = connection.execute(query, (key, first, last)).fetchall()
        logger.error("session %r: not all records from ordinal %d on can be read", standing.session.id, first)
    rows = {ordinal: row for row, ordinal in reversed(chain)}
    found = []
    while first <= last and first in rows:
        found.append(rows[first])
        first += 1
    return found


def is_whole_record(row: tuple[Any, ...]) -> bool:
    """Whether a row of `records`, but for the body, is what was written."""
    try:
        return bool(zlib.crc32(RECORD_COLUMNS.pack(*row[:8])) == row[8])
    except struct.error:  # a flipped bit can change a column's type
        return False


def crc_of(*numbers: int) -> int:
    """The checksum of a row of other tables."""
    return zlib.crc32(repr(numbers).encode())


def _settled(connection: sqlite3.Connection) -> int:
    for row, crc in connection.execute("SELECT row, crc FROM settled"):
        if crc_of(row) == crc:
            return int(row)
    return 0  # all records are read


def to_signed(incarnation: int) -> int:
    """SQLite's integers are signed; incarnations are not."""
    return incarnation - (1 << 64) if incarnation >> 63 else incarnation


def to_unsigned(incarnation: int) -> int:
    return incarnation + (1 << 64) if incarnation < 0 else incarnation
