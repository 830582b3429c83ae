"""What keeps the SQLite files small: done in the thread that syncs, in pieces that hold up the writer for a moment."""

import os
import threading

from dnc_serve.handler.journal.stores.sqlite_files import PAGE_BYTES, SQLiteFiles
from dnc_serve.handler.journal.stores.sqlite_index import Index

CHECKPOINT_BYTES = 16 << 20  # about how much log there may be before it moves into the file
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

    def run(self) -> None:
        """One piece of each kind that is due."""
        if len(self._index.dead) >= _SWEEP_ROWS or self._index.dead_bytes >= _SWEEP_BYTES:
            self._sweep()
            self._vacuuming = True
        elif self._vacuuming:
            self._vacuum()
        if self.log_bytes > CHECKPOINT_BYTES:
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
        """SQLite itself syncs the log before it moves anything, and the file after."""
        for _ in range(3):
            query = self._files.checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)")
            _, in_log, moved = query.fetchone()
            if in_log == moved:
                break
            # Commits went on meanwhile. What is synced now need not be synced while they wait.
            os.fdatasync(self._files.database)
        with self._writing, self._reading:
            # Little is left. With nobody else at the file the log surely begins anew, and can't grow for ever.
            self._files.checkpointer.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            self.log_bytes = 0
