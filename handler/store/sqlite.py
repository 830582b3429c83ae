"""Sessions in one SQLite file in the state folder: the store of a server of its own.

    commit ──▶ write-ahead log (handed to the OS) ──sync──▶ the same, on the medium ──checkpoint──▶ sessions.db

What is guaranteed: a commit that returned survives the process, one that `sync` covered survives a power loss, and a
file cut or torn at any place opens as a prefix of the commits. After a failed sync the page cache can't be trusted, so
all is refused until the files were closed, read again from the medium, their checksums found right, and what was
committed since the last good sync was written once more: as long as the process lives, nothing of it is lost.
"""

import contextlib
import errno
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store import sqlite_index
from dnc_serve.handler.store.contract import (
    Head,
    Lease,
    Mutation,
    Outcome,
    Prune,
    Record,
    Rejected,
    Snapshot,
    SnapshotInfo,
    by_session,
)
from dnc_serve.handler.store.folder_lock import FolderLock
from dnc_serve.handler.store.prunable import choose
from dnc_serve.handler.store.schema import MIGRATIONS, Migration, migrate
from dnc_serve.handler.store.sqlite_files import PAGE_BYTES, SQLiteFiles
from dnc_serve.handler.store.sqlite_reader import SQLiteReader
from dnc_serve.handler.store.sqlite_transaction import Transaction
from dnc_serve.handler.store.sqlite_upkeep import SQLiteUpkeep

logger = logging.getLogger(__name__)

RETRY_S = 1.0  # between attempts to open failed files again
_TOMBSTONES = 256  # forgotten in one transaction
# Failures of the medium, after which the files are opened again. After others (no space, a lock, one page malformed)
# the connections are as good as before.
_MEDIUM = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL)
# And those that are no single mutation's fault.
_EVERYBODYS = (*_MEDIUM, sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM)


class SQLiteStore:
    """The `Store` of one server. Locks are taken in this order: syncing, writing, the reader's, indexing."""

    shared = False

    def __init__(self, state_dir: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        self._path = state_dir / "sessions.db"
        self._lock = FolderLock(state_dir)
        self._migrations = migrations
        self._syncing = threading.Lock()
        self._writing = threading.Lock()
        self._indexing = threading.Lock()
        self._opened = False
        self._failure = "it is not open"  # why the files can't be used; empty if they can
        self._retry_at = math.inf
        self._tidy_at = 0.0
        self._unsynced: list[Sequence[Mutation]] = []

    def open(self) -> None:
        try:
            with self._guard():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.take()
                self._open_files(create=True)
        except BaseException:
            self._retry_at = math.inf  # only another `open` may try again
            self._lock.release()
            raise
        self._failure = ""

    def close(self) -> None:
        try:
            with self._guard(), self._syncing, self._writing:
                sound = not self._failure
                self._failure, self._retry_at = "it is closed", math.inf
                if self._opened:
                    self._opened = False
                    with self._reader.lock:
                        # After a failed sync, the next start must judge what is in the log.
                        self._files.close(last="writer" if sound else "reader")
        finally:
            self._lock.release()

    def commit(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        self._heal()
        with self._guard(), self._writing:
            self._require_sound()
            outcomes = self._commit(mutations)
            self._unsynced.append(mutations)
        return outcomes

    def sync(self) -> None:
        self._heal()
        with self._guard(), self._syncing:
            self._require_sound()
            if self._files.removed():
                raise OSError(errno.ENOENT, "the files were deleted")
            with self._writing:
                covered, self._unsynced = self._unsynced, []
            try:
                os.fdatasync(self._files.log)
            except OSError:
                with self._writing:
                    self._unsynced = covered + self._unsynced
                raise
            self._tidy()

    def head(self, session_id: str) -> Head | None:
        return self._reading().head(session_id)

    def heads(self) -> Iterator[Head]:
        return self._reading().heads()

    def records(self, session_id: str, incarnation: int, after: int, up_to: int | None = None) -> Iterator[Record]:
        return self._reading().records(session_id, incarnation, after, up_to)

    def snapshots(self, session_id: str, incarnation: int) -> list[SnapshotInfo]:
        return self._reading().snapshots(session_id, incarnation)

    def snapshot(self, session_id: str, incarnation: int, ordinal: int) -> Snapshot | None:
        return self._reading().snapshot(session_id, incarnation, ordinal)

    def prunable(self, before: float, excess_bytes: int) -> list[Prune]:
        self._heal()
        with self._indexing:
            return choose(self._index.steps(), before, excess_bytes)

    def size_bytes(self) -> int:
        return self._index.size_bytes

    def forget_tombstones(self, before: float, at_most: int) -> int:
        tombstones = self._reading().tombstones()
        excess = len(tombstones) - at_most
        leaving = [
            (key, session_id)
            for place, (ended_at, key, session_id) in enumerate(tombstones)
            if ended_at < before or place < excess
        ]
        for start in range(0, len(leaving), _TOMBSTONES):
            part = leaving[start : start + _TOMBSTONES]
            with self._guard(), self._writing:
                with self._transaction():
                    self._files.writer.executemany("DELETE FROM sessions WHERE key = ?", [(key,) for key, _ in part])
                self._upkeep.log_bytes += len(part) * PAGE_BYTES
                with self._indexing:
                    for key, session_id in part:
                        self._index.forget(key, session_id)
        return len(leaving)

    def reserve(self, session_id: str, owner: str, at_most: int | None) -> int:
        raise NotImplementedError("its server knows all sessions")

    def owned(self, owner: str, after: str, prefix: str, size: int) -> tuple[list[Head], str]:
        raise NotImplementedError("its server knows all sessions")

    def overdue(self, used_before: float, born_before: float | None, at_most: int) -> list[tuple[Head, str]]:
        raise NotImplementedError("its server knows all sessions")

    def acquire(self, session_id: str) -> Lease:
        return Lease(session_id, 1, math.inf)

    def renew(self, leases: Sequence[Lease]) -> list[Lease | None]:
        return list(leases)

    def release(self, leases: Sequence[Lease]) -> None:
        """Nothing: nobody else can have them while this server holds the folder."""

    def _tidy(self) -> None:
        """All is synced already: a failure here is no reason to say otherwise."""
        if time.monotonic() < self._tidy_at:
            return
        try:
            with self._guard():
                self._upkeep.run()
        except StoreUnavailable as unavailable:
            self._tidy_at = time.monotonic() + RETRY_S
            logger.warning("the upkeep was put off: %s", unavailable)

    def _commit(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        """In one transaction; if one session's mutations can't be written, in one for each session."""
        try:
            return self._commit_together(mutations)
        except Exception as exc:
            if _is_everybodys(exc):
                raise
        outcomes: list[Outcome] = [None] * len(mutations)
        for session_id, places in by_session(mutations).items():
            try:
                own = self._commit_together([mutations[place] for place in places])
            except Exception as exc:
                if _is_everybodys(exc):
                    raise
                logger.exception("session %r could not be written", session_id)
                own = [Rejected(f"session {session_id!r} can't be written: {exc}")] * len(places)
            for place, outcome in zip(places, own, strict=True):
                outcomes[place] = outcome
        return outcomes

    def _commit_together(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        with self._transaction():
            transaction = Transaction(self._files.writer, self._index)
            outcomes: list[Outcome] = [transaction.apply(mutation) for mutation in mutations]
            transaction.flush()
        with self._indexing:
            transaction.settle()
        self._upkeep.log_bytes += transaction.size_bytes + 2 * PAGE_BYTES  # the first and the last page are shared
        return outcomes

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        writer = self._files.writer
        writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:  # after some failures SQLite has rolled back by itself
                writer.execute("ROLLBACK")
            raise

    def _reading(self) -> SQLiteReader:
        self._heal()
        return self._reader

    def _open_files(self, create: bool) -> None:
        files = SQLiteFiles(self._path, create)
        try:
            migrate(files.writer, self._path, self._migrations)
            index = sqlite_index.load(files.writer)
        except BaseException:
            files.close(last="reader")
            raise
        self._files = files
        self._index = index
        self._reader = SQLiteReader(files.reader, index, self._indexing, self._guard)
        self._upkeep = SQLiteUpkeep(files, index, self._writing, self._reader.lock)
        self._opened = True

    def _require_sound(self) -> None:
        if self._failure:
            raise StoreUnavailable(f"{self._path} can't be used: {self._failure}")

    def _heal(self) -> None:
        """Opens failed files again, at most once a second."""
        if not self._failure:
            return
        if time.monotonic() < self._retry_at:
            self._require_sound()
        # Whoever calls may be an event loop, and the sync that holds the lock may hang on a sick disk.
        if not self._syncing.acquire(timeout=0.05):
            self._require_sound()
            return
        try:
            with self._guard(), self._writing:
                if self._failure and time.monotonic() >= self._retry_at:
                    self._open_again()
                    self._failure = ""
                    logger.warning("%s can be used again", self._path)
        finally:
            self._syncing.release()

    def _open_again(self) -> None:
        """What the medium has is read anew, and what it may lack is written once more."""
        if self._opened:
            with self._reader.lock:
                self._files.drop_page_cache()
                self._files.close(last="reader")
                self._opened = False
        self._open_files(create=False)
        for mutations in self._unsynced:
            self._commit(mutations)
        os.fdatasync(self._files.log)
        self._unsynced = []

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Failures of SQLite and of the operating system come out as `StoreUnavailable`."""
        try:
            yield
        except (sqlite3.Error, OSError) as exc:
            if isinstance(exc, OSError) or _code(exc) in _MEDIUM:
                self._failure = str(exc)
                self._retry_at = time.monotonic() + RETRY_S
                logger.error("%s failed and will be opened again: %s", self._path, exc)
            raise StoreUnavailable(f"{self._path} can't be used: {exc}") from exc


def _code(exc: Exception) -> int:
    return int(getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_OK)) & 0xFF


def _is_everybodys(exc: Exception) -> bool:
    """Whether a commit failed for no single session's sake."""
    return isinstance(exc, OSError | MemoryError) or _code(exc) in _EVERYBODYS
