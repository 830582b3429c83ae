"""Mutations in, SQL out: each call writes one transaction, of which memory learns once it is committed."""

import logging
import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any

from dnc_serve.handler.store.contract import (
    Append,
    Begin,
    End,
    Fenced,
    Head,
    Keep,
    Mutation,
    Outcome,
    Prune,
    Rejected,
    Snapshot,
    by_session,
)
from dnc_serve.handler.store.sqlite_files import PAGE_BYTES
from dnc_serve.handler.store.sqlite_sessions import (
    RECORD_COLUMNS,
    Session,
    Sessions,
    Standing,
    crc_of,
    find,
    rows_of,
)

logger = logging.getLogger(__name__)

# Failures of the medium, after which the files are opened again. After others (no space, a lock, one page malformed)
# the connections are as good as before.
MEDIUM = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL)
# And those that are no single mutation's fault.
_EVERYBODYS = (*MEDIUM, sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM)

_INSERT_RECORD = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_SESSION = f"INSERT OR REPLACE INTO sessions VALUES ({', '.join('?' * 18)})"  # noqa: S608  question marks
_INSERT_SNAPSHOT = f"INSERT INTO snapshots VALUES ({', '.join('?' * 10)})"  # noqa: S608
INSERT_GARBAGE = "INSERT INTO garbage VALUES (?, ?, ?, ?, ?)"
# Only the two newest snapshots, and one that was written or pruned up to, can have become steps or ceased to be.
_FIND_STEPS = """
UPDATE snapshots SET step = ordinal > :pruned AND ordinal < (SELECT max(ordinal) FROM snapshots WHERE session = :key)
WHERE session = :key AND ordinal IN (
    SELECT :ordinal UNION SELECT * FROM (
        SELECT ordinal FROM snapshots WHERE session = :key ORDER BY ordinal DESC LIMIT 2))
"""


class SQLiteWriter:
    """Who changes what the file says, called by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.sessions = Sessions(connection)
        self.log_bytes = 0  # that were added to the write-ahead log, about
        # Of what is to be deleted, each record counting as two pages at least.
        self.dead_bytes = 1 << 62 if connection.execute("SELECT 1 FROM garbage").fetchone() else 0
        self._connection = connection

    def write(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        """Writes all of them, in order; none if it raises."""
        connection, sessions = self._connection, self.sessions
        self._changed: dict[str, Standing] = {}
        self._records: list[tuple[Any, ...]] = []  # not inserted yet
        self._last_row, self._last_key = sessions.last_row, sessions.last_key
        self._written = self._grown = self._dead = 0
        try:
            with connection:  # commits, or rolls back
                connection.execute("BEGIN IMMEDIATE")
                outcomes: list[Outcome] = [
                    self._append(mutation) if isinstance(mutation, Append) else self._apply(mutation)
                    for mutation in mutations
                ]
                if self._records:
                    connection.executemany(_INSERT_RECORD, self._records)
        except Exception as exc:
            if isinstance(exc, OSError | MemoryError) or code_of(exc) in _EVERYBODYS:
                raise
            return self._write_apart(mutations, exc)
        sessions.standings.update(self._changed)
        sessions.last_row, sessions.last_key = self._last_row, self._last_key
        sessions.size_bytes += self._grown
        self.dead_bytes += self._dead
        self.log_bytes += self._written + 2 * PAGE_BYTES  # the first and the last page are shared
        return outcomes

    def _write_apart(self, mutations: Sequence[Mutation], exc: Exception) -> list[Outcome]:
        """What can't be written together, in a transaction for each session: one of them alone is refused."""
        places = by_session(mutations)
        if len(places) == 1:
            (session_id,) = places
            logger.error("session %r could not be written", session_id, exc_info=exc)
            return [Rejected(f"session {session_id!r} can't be written: {exc}")] * len(mutations)
        outcomes: list[Outcome] = [None] * len(mutations)
        for own in places.values():
            for place, outcome in zip(own, self.write([mutations[place] for place in own]), strict=True):
                outcomes[place] = outcome
        return outcomes

    def _append(self, mutation: Append) -> Fenced | None:
        (session_id, incarnation, ordinal, position, experience, at, body), digest = mutation
        former = (
            self._changed.get(session_id)
            or self.sessions.standings.get(session_id)
            or find(self._connection, session_id)
        )
        if former is None or former.session.incarnation != incarnation or former.session.ended:
            return _fenced(session_id, incarnation, former)
        if ordinal != former.ordinal + 1 or digest is not None:
            if not former.pruned < ordinal <= former.ordinal + 1:
                return Fenced(f"session {session_id!r}: record {ordinal} can't follow record {former.ordinal}")
            former = self._make_way(former, ordinal, digest)
        session, _, _, _, _, previous, total, pruned, pruned_total = former
        self._last_row = row = self._last_row + 1
        size = len(body)
        total += size
        self._grown += size
        self._written += size
        columns = (row, session.key, ordinal, position, experience, at, previous, total)
        self._records.append((*columns, zlib.crc32(RECORD_COLUMNS.pack(*columns)), body))
        self._changed[session_id] = Standing(
            session, ordinal, position, experience, at, row, total, pruned, pruned_total
        )  # fmt: skip
        return None

    def _make_way(self, former: Standing, ordinal: int, digest: str | None) -> Standing:
        """Where the session stands for a record that is not just the next."""
        self._insert_records()
        if ordinal <= former.ordinal:
            row, total = self._place(former, ordinal - 1)
            self._bury(former, former.row, former.ordinal, ordinal - 1, former.total - total)
            self._drop_snapshots(former, "ordinal >= ?", ordinal)
            self._find_steps(former, ordinal)
            former = former._replace(ordinal=ordinal - 1, row=row, total=total)
        if digest is not None:
            former = former._replace(session=former.session._replace(digest=digest))
            self._put(former)
        return former

    def _apply(self, mutation: Begin | Keep | End | Prune) -> Fenced | None:
        self._insert_records()
        self._written += 4 * PAGE_BYTES
        if isinstance(mutation, Begin):
            self._begin(mutation.head, mutation.snapshot)
            return None
        subject = mutation.snapshot if isinstance(mutation, Keep) else mutation
        session_id, incarnation = subject.session_id, subject.incarnation
        former = self._standing(session_id)
        if former is None or former.session.incarnation != incarnation:
            return _fenced(session_id, incarnation, former)
        if isinstance(mutation, Prune):
            self._prune(former, mutation.ordinal)
        elif isinstance(mutation, End):
            if not former.session.ended:
                self._end(former, mutation.why, float(mutation.at))
        elif former.session.ended:
            return _fenced(session_id, incarnation, former)
        else:
            self._keep(former, mutation.snapshot, mutation.instead_of)
        return None

    def _standing(self, session_id: str) -> Standing | None:
        """As `_append` finds it, which is spared this call for each chunk."""
        return (
            self._changed.get(session_id)
            or self.sessions.standings.get(session_id)
            or find(self._connection, session_id)
        )

    def forget_tombstones(self, before: float, excess: int, at_most: int) -> int:
        """Those that ended before a time, and so many more; in one transaction no more than a number."""
        connection, standings = self._connection, self.sessions.standings
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            oldest = connection.execute(
                "SELECT ended_at, key, id FROM sessions WHERE ended != '' ORDER BY ended_at LIMIT ?", (at_most,)
            ).fetchall()
            leaving = [row for place, row in enumerate(oldest) if row[0] < before or place < excess]
            connection.executemany("DELETE FROM sessions WHERE key = ?", [(key,) for _, key, _ in leaving])
        for _, _, session_id in leaving:
            standings.pop(session_id, None)
        self.log_bytes += len(leaving) * PAGE_BYTES
        return len(leaving)

    def forget(self, session_ids: Sequence[str]) -> None:
        """Drops sessions and leaves no tombstones."""
        self._changed = {}
        self._grown = self._dead = 0
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            for session_id in session_ids:
                if (former := self._standing(session_id)) is not None:
                    self._clear(former)
                    connection.execute("DELETE FROM sessions WHERE key = ?", (former.session.key,))
        for session_id in session_ids:
            self.sessions.standings.pop(session_id, None)
        self.sessions.size_bytes += self._grown
        self.dead_bytes += self._dead
        self.log_bytes += len(session_ids) * PAGE_BYTES

    def _begin(self, head: Head, snapshot: Snapshot | None) -> None:
        former = self._standing(head.session_id)
        if former is not None:
            self._clear(former)
        self._last_key += 1
        session = Session(
            self._last_key, head.session_id, head.incarnation, head.digest, head.owner, float(head.created_at),
            head.ended, float(head.ended_at),
        )  # fmt: skip
        standing = Standing(
            session, head.ordinal, head.position, head.experience, float(head.last_used_at), 0, 0, head.ordinal, 0
        )  # fmt: skip
        self._put(standing)  # in place of the former one, which had the same id
        if snapshot is not None:
            self._keep(standing, snapshot, ())

    def _end(self, former: Standing, why: str, at: float) -> None:
        self._clear(former)
        session = former.session._replace(ended=why, ended_at=at)
        self._put(former._replace(session=session, pruned=former.ordinal, pruned_total=former.total))

    def _prune(self, former: Standing, ordinal: int) -> None:
        up_to = min(ordinal, former.ordinal)
        if up_to > former.pruned:
            row, total = self._place(former, up_to)
            self._bury(former, row, up_to, former.pruned, total - former.pruned_total)
            former = former._replace(pruned=up_to, pruned_total=total)
            self._put(former)
        self._drop_snapshots(former, "ordinal < ?", ordinal)
        self._find_steps(former, ordinal)

    def _keep(self, standing: Standing, snapshot: Snapshot, instead_of: Sequence[int]) -> None:
        for ordinal in {snapshot.ordinal, *instead_of}:
            self._drop_snapshots(standing, "ordinal = ?", ordinal)
        row, total = self._place(standing, snapshot.ordinal)
        state = self._connection.execute("INSERT INTO states (state) VALUES (?)", (snapshot.state,)).lastrowid
        size = len(snapshot.state)
        self._connection.execute(
            _INSERT_SNAPSHOT,
            (
                *(standing.session.key, snapshot.ordinal, snapshot.position, snapshot.experience, snapshot.at),
                *(size, state, row, total, 0),
            ),
        )
        self._grown += size
        self._written += size
        self._find_steps(standing, snapshot.ordinal)

    def _place(self, standing: Standing, ordinal: int) -> tuple[int, int]:
        """Row of the record with an ordinal, and the bytes of the session's bodies up to it."""
        if ordinal >= standing.ordinal:
            return standing.row, standing.total
        if ordinal <= standing.pruned:
            return 0, standing.pruned_total
        for row in rows_of(self._connection, standing, ordinal, ordinal):
            (total,) = self._connection.execute("SELECT total FROM records WHERE row = ?", (row,)).fetchone()
            return row, total
        raise sqlite3.DatabaseError(f"record {ordinal} is lost")

    def _put(self, standing: Standing) -> None:
        self._connection.execute(_INSERT_SESSION, standing.columns())
        self._changed[standing.session.id] = standing

    def _insert_records(self) -> None:
        self._connection.executemany(_INSERT_RECORD, self._records)
        self._records.clear()

    def _bury(self, standing: Standing, row: int, ordinal: int, above: int, nbytes: int) -> None:
        """Nobody needs the record in this row any more, nor those before it that are above an ordinal."""
        self._grown -= nbytes
        if ordinal > above:
            garbage = (row, standing.session.key, ordinal, above)
            self._connection.execute(INSERT_GARBAGE, (*garbage, crc_of(*garbage)))
            self._dead += nbytes + 2 * PAGE_BYTES * (ordinal - above)

    def _clear(self, former: Standing) -> None:
        """Nobody needs anything of the session any more."""
        self._drop_snapshots(former, "ordinal >= ?", 0)
        self._bury(former, former.row, former.ordinal, former.pruned, former.total - former.pruned_total)

    def _drop_snapshots(self, standing: Standing, which: str, ordinal: int) -> None:
        query = f"DELETE FROM snapshots WHERE session = ? AND {which} RETURNING size, state"  # noqa: S608  the callers
        for size, state in self._connection.execute(query, (standing.session.key, ordinal)).fetchall():
            self._connection.execute("DELETE FROM states WHERE row = ?", (state,))
            self._grown -= size

    def _find_steps(self, standing: Standing, ordinal: int) -> None:
        values = {"key": standing.session.key, "pruned": standing.pruned, "ordinal": ordinal}
        self._connection.execute(_FIND_STEPS, values)


def _fenced(session_id: str, incarnation: int, standing: Standing | None) -> Fenced:
    if standing is None:
        return Fenced(f"session {session_id!r} is unknown")
    if standing.session.incarnation != incarnation:
        return Fenced(f"session {session_id!r} is incarnation {standing.session.incarnation}, not {incarnation}")
    return Fenced(f"session {session_id!r} was {standing.session.ended}")


def code_of(exc: Exception) -> int:
    return int(getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_OK)) & 0xFF
