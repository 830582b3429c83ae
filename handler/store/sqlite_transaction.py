"""One commit: mutations in, SQL out, and what the index has to learn once the commit has succeeded."""

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any

from dnc_serve.handler.store.contract import Append, Begin, End, Fenced, Keep, Mutation, Prune, Snapshot
from dnc_serve.handler.store.sqlite_index import Index, Kept, Standing
from dnc_serve.handler.store.sqlite_rows import SessionRow, record_row

_INSERT_RECORD = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_SESSION = "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_SNAPSHOT = (
    "INSERT INTO snapshots (session, ordinal, position, experience, at, state) VALUES (?, ?, ?, ?, ?, ?)"
)  # fmt: skip


class Transaction:
    """Applies mutations in order, within a transaction that the caller begins and commits.

    The index stays as it is until `settle`, so that a rollback has nothing to undo and readers see what is committed.
    """

    def __init__(self, connection: sqlite3.Connection, index: Index) -> None:
        self._connection = connection
        self._index = index
        self._standings: dict[str, Standing] = {}  # of sessions that this transaction has changed
        self._records: list[tuple[Any, ...]] = []  # not inserted yet
        self._changes: list[Callable[[], None]] = []
        self.size_bytes = 0  # of the bodies and states written
        self._last_row = index.last_row
        self._last_key = index.last_key

    def apply(self, mutation: Mutation) -> Fenced | None:
        if isinstance(mutation, Append):
            return self._append(mutation)
        self.flush()
        if isinstance(mutation, Begin):
            self._begin(mutation)
            return None
        if isinstance(mutation, Keep):
            return self._keep(mutation.snapshot, mutation.instead_of)
        if isinstance(mutation, End):
            return self._end(mutation)
        return self._prune(mutation)

    def flush(self) -> None:
        """Inserts the records that were applied; to be called before the commit."""
        if self._records:
            self._connection.executemany(_INSERT_RECORD, self._records)
            self._records.clear()

    def settle(self) -> None:
        """Tells the index, after the commit."""
        self._index.last_row = self._last_row
        self._index.last_key = self._last_key
        for change in self._changes:
            change()

    def _standing(self, session_id: str) -> Standing | None:
        standing = self._standings.get(session_id)
        if standing is None:
            chain = self._index.chains.get(session_id)
            standing = None if chain is None else chain.standing
        return standing

    def _append(self, mutation: Append) -> Fenced | None:
        record = mutation.record
        session_id, ordinal = record.session_id, record.ordinal
        former = self._standing(session_id)
        if former is None or former.ended or former.incarnation != record.incarnation:
            return _fenced(session_id, record.incarnation, former)
        if not former.pruned < ordinal <= former.ordinal + 1:
            return Fenced(f"session {session_id!r}: record {ordinal} can't follow record {former.ordinal}")
        if ordinal <= former.ordinal:
            self._drop_snapshots(session_id, former.key, "ordinal >= ?", ordinal)
        if mutation.digest is not None:
            self._rewrite_session(former.key, digest=mutation.digest)
        self._last_row += 1
        self.size_bytes += len(record.body)
        self._records.append(record_row(self._last_row, former.key, record))
        standing = Standing(
            former.key, former.incarnation, former.pruned, ordinal, record.position, record.experience, record.at, ""
        )  # fmt: skip
        self._standings[session_id] = standing
        self._changes.append(partial(self._index.append, session_id, standing, self._last_row, len(record.body)))
        return None

    def _begin(self, mutation: Begin) -> None:
        head, snapshot = mutation.head, mutation.snapshot
        former = self._standing(head.session_id)
        if former is not None:
            self._drop_snapshots(head.session_id, former.key, "ordinal >= ?", 0)
            self._connection.execute("DELETE FROM sessions WHERE key = ?", (former.key,))
        self._last_key += 1
        self._write_session(SessionRow.of(self._last_key, head))
        standing = Standing(
            key=self._last_key,
            incarnation=head.incarnation,
            pruned=head.ordinal,
            ordinal=head.ordinal,
            position=head.position,
            experience=head.experience,
            at=head.last_used_at,
            ended=head.ended,
        )
        self._standings[head.session_id] = standing
        self._changes.append(partial(self._index.begin, head.session_id, standing))
        if snapshot is not None:
            self._write_snapshot(standing.key, snapshot)

    def _keep(self, snapshot: Snapshot, instead_of: tuple[int, ...]) -> Fenced | None:
        standing = self._standing(snapshot.session_id)
        if standing is None or standing.ended or standing.incarnation != snapshot.incarnation:
            return _fenced(snapshot.session_id, snapshot.incarnation, standing)
        for ordinal in {snapshot.ordinal, *instead_of}:
            self._drop_snapshots(snapshot.session_id, standing.key, "ordinal = ?", ordinal)
        self._write_snapshot(standing.key, snapshot)
        return None

    def _end(self, mutation: End) -> Fenced | None:
        former = self._standing(mutation.session_id)
        if former is None or former.incarnation != mutation.incarnation:
            return _fenced(mutation.session_id, mutation.incarnation, former)
        if former.ended:
            return None
        self._drop_snapshots(mutation.session_id, former.key, "ordinal >= ?", 0)
        self._shorten(mutation.session_id, former._replace(pruned=former.ordinal, ended=mutation.why), mutation.at)
        return None

    def _prune(self, mutation: Prune) -> Fenced | None:
        former = self._standing(mutation.session_id)
        if former is None or former.incarnation != mutation.incarnation:
            return _fenced(mutation.session_id, mutation.incarnation, former)
        self._drop_snapshots(mutation.session_id, former.key, "ordinal < ?", mutation.ordinal)
        pruned = min(mutation.ordinal, former.ordinal)
        if pruned > former.pruned:
            self._shorten(mutation.session_id, former._replace(pruned=pruned))
        return None

    def _shorten(self, session_id: str, standing: Standing, ended_at: float = 0.0) -> None:
        self._rewrite_session(
            standing.key,
            position=standing.position,
            experience=standing.experience,
            last_used_at=float(standing.at),
            pruned=standing.pruned,
            ended=standing.ended,
            ended_at=float(ended_at),
        )
        self._standings[session_id] = standing
        self._changes.append(partial(self._index.shorten, session_id, standing))

    def _write_session(self, row: SessionRow) -> None:
        self._connection.execute(_INSERT_SESSION, (*row, row.crc()))

    def _rewrite_session(self, key: int, **changes: Any) -> None:
        *columns, crc = self._connection.execute("SELECT * FROM sessions WHERE key = ?", (key,)).fetchone()
        row = SessionRow(*columns)
        if row.crc() != crc:
            raise sqlite3.DatabaseError(f"row {key} of sessions is damaged")
        self._write_session(row._replace(**changes))

    def _write_snapshot(self, key: int, snapshot: Snapshot) -> None:
        self._connection.execute(
            _INSERT_SNAPSHOT,
            (
                key,
                snapshot.ordinal,
                snapshot.position,
                snapshot.experience,
                float(snapshot.at),
                snapshot.state,
            ),
        )
        self.size_bytes += len(snapshot.state)
        kept = Kept(snapshot.ordinal, float(snapshot.at), len(snapshot.state))
        self._changes.append(partial(self._index.keep, snapshot.session_id, kept))

    def _drop_snapshots(self, session_id: str, key: int, which: str, ordinal: int) -> None:
        query = f"DELETE FROM snapshots WHERE session = ? AND {which} RETURNING ordinal"
        for (dropped,) in self._connection.execute(query, (key, ordinal)).fetchall():
            self._changes.append(partial(self._index.drop, session_id, dropped))


def _fenced(session_id: str, incarnation: int, standing: Standing | None) -> Fenced:
    if standing is None:
        return Fenced(f"session {session_id!r} is unknown")
    if standing.incarnation != incarnation:
        return Fenced(f"session {session_id!r} is incarnation {standing.incarnation}, not {incarnation}")
    return Fenced(f"session {session_id!r} was {standing.ended}")
