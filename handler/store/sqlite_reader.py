"""Reading the SQLite file beside the writer, in short read transactions."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from dnc_serve.handler.store.contract import Head, Record, Snapshot, SnapshotInfo
from dnc_serve.handler.store.sqlite_index import LOST, Index, session_rows
from dnc_serve.handler.store.sqlite_rows import SessionRow, record_crc, to_unsigned

# A read transaction ends after so many rows, because the log can't begin anew while one runs.
_ROWS = 256


class Guard(Protocol):
    """Turns the failures of SQLite into `StoreUnavailable`."""

    def __call__(self) -> AbstractContextManager[None]: ...


class SQLiteReader:
    """The reading half of the store, for as long as its files stay open. Iterators may be left unfinished."""

    def __init__(self, connection: sqlite3.Connection, index: Index, indexing: threading.Lock, guard: Guard) -> None:
        self.lock = threading.Lock()
        self._connection = connection
        self._index = index
        self._indexing = indexing
        self._guard = guard

    def head(self, session_id: str) -> Head | None:
        with self._indexing:
            chain = self._index.chains.get(session_id)
            if chain is None:
                return None
            key = chain.standing.key
        with self._guard(), self.lock:
            rows = list(session_rows(self._connection, key - 1, 1))
        return self._head_of(rows[0]) if rows and rows[0].key == key else None

    def heads(self) -> Iterator[Head]:
        after = 0
        while True:
            with self._guard(), self.lock:
                # Not `session_rows` alone: where a page holds only damaged rows, the walk still goes on.
                keys = self._connection.execute(
                    "SELECT key FROM sessions WHERE key > ? ORDER BY key LIMIT ?", (after, _ROWS)
                ).fetchall()
                rows = list(session_rows(self._connection, after, _ROWS))
            if not keys:
                return
            for row in rows:
                head = self._head_of(row)
                if head is not None:
                    yield head
            (after,) = keys[-1]

    def records(self, session_id: str, incarnation: int, after: int, up_to: int | None) -> Iterator[Record]:
        with self._indexing:
            chain = self._index.chains.get(session_id)
            if chain is None or chain.standing.incarnation != incarnation:
                return
            key = chain.standing.key
            rows = chain.rows_between(after, up_to)
            ordinal = max(after, chain.standing.pruned)
        if LOST in rows:
            rows = rows[: rows.index(LOST)]
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            marks = ",".join("?" * len(part))
            found = self._all(f"SELECT * FROM records WHERE row IN ({marks}) ORDER BY row", *part)
            for row, session, number, position, experience, at, crc, body in found:
                ordinal += 1
                if session != key or number != ordinal:
                    return
                if record_crc(row, session, number, position, experience, at) != crc:
                    return
                yield Record(session_id, incarnation, ordinal, position, experience, at, body)
            if len(found) < len(part):
                return

    def snapshots(self, session_id: str, incarnation: int) -> list[SnapshotInfo]:
        key = self._key(session_id, incarnation)
        rows = self._all(
            "SELECT ordinal, position, experience, at, length(state) FROM snapshots WHERE session = ? "
            "ORDER BY ordinal DESC",
            key,
        )
        return [SnapshotInfo(*row) for row in rows]

    def snapshot(self, session_id: str, incarnation: int, ordinal: int) -> Snapshot | None:
        key = self._key(session_id, incarnation)
        for row in self._all(
            "SELECT ordinal, position, experience, at, state FROM snapshots WHERE session = ? AND ordinal = ?",
            key,
            ordinal,
        ):
            return Snapshot(session_id, incarnation, *row)
        return None

    def tombstones(self) -> list[tuple[float, int, str]]:
        """(ended at, key, id) of the sessions that ended, oldest first."""
        return self._all("SELECT ended_at, key, id FROM sessions WHERE ended != '' ORDER BY ended_at")

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._guard(), self.lock:
            return self._connection.execute(query, values).fetchall()

    def _key(self, session_id: str, incarnation: int) -> int:
        """The session's key; 0, which no session has, if it is unknown."""
        with self._indexing:
            chain = self._index.chains.get(session_id)
            return 0 if chain is None or chain.standing.incarnation != incarnation else chain.standing.key

    def _head_of(self, row: SessionRow) -> Head | None:
        """The head, as far as its row tells, and from the index where the session stands now."""
        with self._indexing:
            chain = self._index.chains.get(row.id)
            if chain is None or chain.standing.key != row.key:
                return None
            standing = chain.standing
        return Head(
            session_id=row.id,
            incarnation=to_unsigned(row.incarnation),
            digest=row.digest,
            owner=row.owner,
            created_at=row.created_at,
            last_used_at=standing.at,
            position=standing.position,
            experience=standing.experience,
            ordinal=standing.ordinal,
            ended=row.ended,
            ended_at=row.ended_at,
        )
