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
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store.contract import (
    Head,
    Mutation,
    Outcome,
    Prune,
    Record,
    Snapshot,
    SnapshotInfo,
)
from dnc_serve.handler.store.folder_lock import FolderLock
from dnc_serve.handler.store.prunable import Step, choose
from dnc_serve.handler.store.schema import MIGRATIONS, Migration, migrate
from dnc_serve.handler.store.sqlite_files import SQLiteFiles
from dnc_serve.handler.store.sqlite_sessions import Standing, find, is_whole_record, rows_of, to_unsigned
from dnc_serve.handler.store.sqlite_upkeep import SQLiteUpkeep
from dnc_serve.handler.store.sqlite_writer import MEDIUM, SQLiteWriter, code_of

logger = logging.getLogger(__name__)

RETRY_S = 1.0  # between attempts to open failed files again
_ROWS = 256  # read or deleted in one transaction: the log can't begin anew while one runs
_SELECT_STEPS = """
SELECT this.at, id, incarnation, this.ordinal,
    this.total - coalesce(former.total, pruned_total) + coalesce(former.size, 0)
FROM snapshots AS this JOIN sessions ON key = this.session
LEFT JOIN snapshots AS former ON former.session = this.session AND former.ordinal =
    (SELECT max(ordinal) FROM snapshots WHERE session = this.session AND ordinal < this.ordinal)
WHERE this.step ORDER BY this.at
"""


class SQLiteStore:
    """The `Store` of one server. Locks are taken in this order: syncing, writing, reading."""

    shared = False

    def __init__(self, state_dir: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        self._path = state_dir / "sessions.db"
        self._lock = FolderLock(state_dir)
        self._migrations = migrations
        self._syncing = threading.Lock()
        self._writing = threading.Lock()
        self._reading = threading.Lock()  # by `_files.reader`
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
            with self._guard(), self._syncing:
                if not self._failure:
                    self._tidy(closing=True)
            with self._guard(), self._syncing, self._writing:
                sound = not self._failure
                self._failure, self._retry_at = "it is closed", math.inf
                if self._opened:
                    self._opened = False
                    with self._reading:
                        # After a failed sync, the next start must judge what is in the log.
                        self._files.close(last="writer" if sound else "reader")
        finally:
            self._lock.release()

    def commit(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        if self._failure:
            self._heal()
        try:
            with self._writing:
                if self._failure:
                    self._require_sound()
                outcomes = self._writer.write(mutations)
                self._unsynced.append(mutations)
            return outcomes
        except (sqlite3.Error, OSError) as exc:
            raise self._failed(exc) from exc

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
        standing = self._standing(session_id)
        return None if standing is None else standing.head()

    def heads(self) -> Iterator[Head]:
        known = self._known()
        after = 0
        while rows := self._all("SELECT * FROM sessions WHERE key > ? ORDER BY key LIMIT ?", after, _ROWS):
            for row in rows:
                standing = Standing.of_columns(row)
                if standing is not None:
                    newer = known.get(standing.session.id, standing)
                    yield (newer if newer.session.key == standing.session.key else standing).head()
            after = rows[-1][0]

    def records(self, session_id: str, incarnation: int, after: int, up_to: int | None = None) -> Iterator[Record]:
        standing = self._standing(session_id, incarnation)
        if standing is None:
            return
        first = max(after, standing.pruned) + 1
        last = standing.ordinal if up_to is None else min(up_to, standing.ordinal)
        if first > last:
            return
        with self._guard(), self._reading:
            rows = rows_of(self._files.reader, standing, first, last)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            marks = ",".join("?" * len(part))
            found = self._all(f"SELECT * FROM records WHERE row IN ({marks}) ORDER BY row", *part)  # noqa: S608  question marks
            for row in found:
                _, session, ordinal, position, experience, at, _, _, _, body = row
                if session != standing.session.key or ordinal != first or not is_whole_record(row):
                    return
                yield Record(session_id, incarnation, ordinal, position, experience, at, body)
                first += 1
            if len(found) < len(part):
                return

    def snapshots(self, session_id: str, incarnation: int) -> list[SnapshotInfo]:
        standing = self._standing(session_id, incarnation)
        rows = standing and self._all(
            "SELECT ordinal, position, experience, at, size FROM snapshots WHERE session = ? ORDER BY ordinal DESC",
            standing.session.key,
        )
        return [SnapshotInfo(*row) for row in rows or ()]

    def snapshot(self, session_id: str, incarnation: int, ordinal: int) -> Snapshot | None:
        standing = self._standing(session_id, incarnation)
        rows = standing and self._all(
            "SELECT ordinal, position, experience, at, states.state FROM snapshots "
            "JOIN states ON row = snapshots.state WHERE session = ? AND ordinal = ?",
            standing.session.key,
            ordinal,
        )
        return Snapshot(session_id, incarnation, *rows[0]) if rows else None

    def prunable(self, before: float, excess_bytes: int) -> list[Prune]:
        self._heal()
        with self._guard(), self._reading:
            steps = self._files.reader.execute(_SELECT_STEPS)
            try:
                return choose(
                    (Step(at, one, to_unsigned(incarnation), *rest) for at, one, incarnation, *rest in steps),
                    before,
                    excess_bytes,
                )
            finally:
                steps.close()

    def size_bytes(self) -> int:
        return self._writer.sessions.size_bytes

    def forget_tombstones(self, before: float, at_most: int) -> int:
        ((count,),) = self._all("SELECT count(*) FROM sessions WHERE ended != ''")
        forgotten = 0
        while True:
            with self._guard(), self._writing:
                part = self._writer.forget_tombstones(before, count - forgotten - at_most, _ROWS)
            forgotten += part
            if part < _ROWS:
                return forgotten

    def forget(self, session_ids: Sequence[str]) -> None:
        """Drops sessions, living or ended, as if they had never been: they are in another file now."""
        with self._guard(), self._writing:
            self._require_sound()
            self._writer.forget(session_ids)

    def _tidy(self, closing: bool = False) -> None:
        """A failure here is no reason to say that what was committed is not synced."""
        if time.monotonic() < self._tidy_at:
            return
        try:
            with self._guard():
                self._upkeep.settle(sys.maxsize) if closing else self._upkeep.run()
        except StoreUnavailable as unavailable:
            self._tidy_at = time.monotonic() + RETRY_S
            logger.warning("the upkeep was put off: %s", unavailable)

    def _known(self) -> dict[str, Standing]:
        """Whose rows may be behind. Of both, this is to be looked at first: what leaves it is in its row by then."""
        if self._failure:
            self._heal()
        return self._writer.sessions.standings

    def _standing(self, session_id: str, incarnation: int | None = None) -> Standing | None:
        """Where a session stands; None if it is unknown, or another incarnation."""
        standing = self._known().get(session_id)
        if standing is None:
            with self._guard(), self._reading:
                standing = find(self._files.reader, session_id)
        return None if standing is None or incarnation not in (None, standing.session.incarnation) else standing

    def _all(self, query: str, *values: Any) -> list[Any]:
        if self._failure:
            self._heal()
        with self._guard(), self._reading:
            return self._files.reader.execute(query, values).fetchall()

    def _open_files(self, create: bool) -> None:
        files = SQLiteFiles(self._path, create)
        try:
            migrate(files.writer, self._path, self._migrations)
            writer = SQLiteWriter(files.writer)
        except BaseException:
            files.close(last="reader")
            raise
        self._files = files
        self._writer = writer
        self._upkeep = SQLiteUpkeep(files, writer, self._writing, self._reading)
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
            with self._reading:
                self._files.drop_page_cache()
                self._files.close(last="reader")
                self._opened = False
        self._open_files(create=False)
        for mutations in self._unsynced:
            self._writer.write(mutations)
        os.fdatasync(self._files.log)
        self._unsynced = []

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Failures of SQLite and of the operating system come out as `StoreUnavailable`."""
        try:
            yield
        except (sqlite3.Error, OSError) as exc:
            raise self._failed(exc) from exc

    def _failed(self, exc: sqlite3.Error | OSError) -> StoreUnavailable:
        if isinstance(exc, OSError) or code_of(exc) in MEDIUM:
            self._failure = str(exc)
            self._retry_at = time.monotonic() + RETRY_S
            logger.error("%s failed and will be opened again: %s", self._path, exc)
        return StoreUnavailable(f"{self._path} can't be used: {exc}")
