"""What keeps the SQLite files small: done in the thread that syncs, in pieces that hold up the writer for a moment."""

import contextlib
import os
import threading
from collections.abc import Iterator

from dnc_serve.handler.store.sqlite_files import PAGE_BYTES, SQLiteFiles
from dnc_serve.handler.store.sqlite_index import Index

CHECKPOINT_BYTES = 16 << 20  # about how much log there may be before it moves into the file
LOG_AT_MOST = 8  # times as much, and commits wait until it has begun anew
_PASSES = 3  # one moves most of the log, the next ones what was committed meanwhile
_SWEEP_ROWS = 256  # deleted at once, or so many bytes of them
_SWEEP_BYTES = 2 << 20
_VACUUM_PAGES = 128
_SPARE_PAGES = 2048  # free pages that a file keeps for what comes next


class SQLiteUpkeep:
    """Deletes what nobody needs, gives pages back to the file system, and begins the log anew."""

    def __init__(self, files: SQLiteFiles, index: Index, writing: threading.Lock, reading: threading.Lock) -> None:
        self.log_bytes = 0  # an estimate, counted up by whoever writes
        self._files = files
        self._index = index
        self._writing = writing
        self._reading = reading
        self._vacuuming = True
        self._checkpoint_at = 0  # bytes of log, after an attempt that could not begin it anew

    def run(self) -> None:
        """One piece of each kind that is due."""
        if len(self._index.dead) >= _SWEEP_ROWS or self._index.dead_bytes >= _SWEEP_BYTES:
            self._sweep()
            self._vacuuming = True
        elif self._vacuuming:
            self._vacuum()
        if self.log_bytes > max(CHECKPOINT_BYTES, self._checkpoint_at):
            self._checkpoint()

    def _sweep(self) -> None:
        writer = self._files.writer
        with self._writing:
            dead = self._index.take_dead(_SWEEP_ROWS, _SWEEP_BYTES)
            try:
                writer.execute("BEGIN IMMEDIATE")
                writer.executemany("DELETE FROM records WHERE row = ?", [(row,) for row, _ in dead])
                writer.execute("COMMIT")
            except BaseException:
                self._index.bury(dead)
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise
            self.log_bytes += len(dead) * PAGE_BYTES  # at most: neighbours share a page

    def _vacuum(self) -> None:
        writer = self._files.writer
        with self._writing:
            (spare,) = writer.execute("PRAGMA freelist_count").fetchone()
            (pages,) = writer.execute("PRAGMA page_count").fetchone()
            self._vacuuming = spare > max(_SPARE_PAGES, pages // 4)
            if self._vacuuming:
                # It takes one step for each page, and `execute` would stop after the first.
                writer.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
                self.log_bytes += 2 * _VACUUM_PAGES * PAGE_BYTES

    def _checkpoint(self) -> None:
        """Moves the log into the file beside the commits, which wait for none of the syncs that this takes, and begins
        it anew if there was a moment for that.

        SQLite syncs the log before it moves anything, and the file once it has moved all. Only then may the log begin
        anew: where commits come faster than that, it goes on growing, as far as `LOG_AT_MOST`.
        """
        for _ in range(_PASSES):
            counted = self.log_bytes
            _, frames, _ = self._files.checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            with _if_free(self._writing) as no_commit, _if_free(self._reading) as no_reader:
                if no_commit and no_reader and self.log_bytes == counted and self._begin_log():
                    return
        if frames > 0:
            # Not only was it an estimate: a commit right behind one that moved all has begun the log anew by itself.
            with self._writing:
                self.log_bytes += frames * PAGE_BYTES - counted
        if self.log_bytes > LOG_AT_MOST * CHECKPOINT_BYTES:
            # What is synced now need not be synced while commits wait.
            os.fdatasync(self._files.database)
            with self._writing, self._reading:
                if self._begin_log():
                    return
        self._checkpoint_at = self.log_bytes + CHECKPOINT_BYTES // 4

    def _begin_log(self) -> bool:
        """Begins the log anew, while nobody of ours is at the file; False if somebody else is."""
        busy, _, _ = self._files.checkpointer.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        if busy:
            return False
        self.log_bytes = PAGE_BYTES
        self._checkpoint_at = 0
        # SQLite syncs the head of a new log before it writes what follows, lest old frames be taken for new ones. So
        # that it does that here rather than in the next commit, there is a first write that changes nothing.
        (version,) = self._files.writer.execute("PRAGMA user_version").fetchone()
        self._files.writer.execute(f"PRAGMA user_version = {version}")
        return True


@contextlib.contextmanager
def _if_free(lock: threading.Lock) -> Iterator[bool]:
    """Takes the lock if that can be had without waiting; tells whether it has."""
    taken = lock.acquire(blocking=False)
    try:
        yield taken
    finally:
        if taken:
            lock.release()
