"""The open files of a SQLite store: three connections, and the descriptors that make them durable.

- `writer` commits. With `synchronous=NORMAL` a commit is only handed to the operating system; SQLite itself then syncs
  where the order of things needs it: around a checkpoint, and when it begins the write-ahead log anew.
- `checkpointer` moves the log into the file, from another thread.
- `reader` can't write. A last connection that could would move the log into the file as it closes; after a failed
  sync nobody may do that with what the page cache says is in the log.
"""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Literal

PAGE_BYTES = 4096
LOG_LIMIT_BYTES = 64 << 20  # a log that grew beyond is cut when it begins anew
_BUSY_TIMEOUT_S = 0.2  # for whoever looks at the file with another tool


class SQLiteFiles:
    """Everything that is open of one database."""

    def __init__(self, path: Path, create: bool) -> None:
        self._path = path
        self._close = contextlib.ExitStack()  # closes in the reverse order
        try:
            if create:
                # States may be confidential; the log gets the same mode from SQLite.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            # POSIX locks of a process vanish when it closes any descriptor of the file: this one outlives the
            # connections.
            self.database = self._descriptor(path)
            self.reader = self.writer = self._connection("rw")
            self._prepare(self.writer)
            self.checkpointer = self._connection("rw")
            self.checkpointer.execute("PRAGMA wal_autocheckpoint = 0")
            self.checkpointer.execute("PRAGMA busy_timeout = 0")  # what can't be had at once is tried again later
            self.reader = self._connection("ro")
            self.reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            self.log = self._descriptor(path.with_name(path.name + "-wal"))
            self._sync_folder()
        except BaseException:
            self._close.close()
            raise

    def close(self, last: Literal["writer", "reader"] = "writer") -> None:
        """Closes all. With the writer as the last, SQLite moves the log into the file and removes it; with the reader,
        both stay as they are."""
        order = [self.reader, self.checkpointer, self.writer]
        for connection in order if last == "writer" else reversed(order):
            connection.close()
        self._close.close()

    def drop_page_cache(self) -> None:
        """What is read next comes from the medium, except what still waits to be written to it."""
        for descriptor in (self.database, self.log):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def removed(self) -> bool:
        """Whether somebody has deleted the files under our hands."""
        return any(os.fstat(descriptor).st_nlink == 0 for descriptor in (self.database, self.log))

    def _prepare(self, writer: sqlite3.Connection) -> None:
        # These two only have an effect on a file without tables.
        writer.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        writer.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if writer.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise sqlite3.OperationalError("the file system does not support write-ahead logging")
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT_BYTES}")
        # Zeros over what was deleted, where the page is written anyway.
        writer.execute("PRAGMA secure_delete = FAST")
        writer.execute("PRAGMA temp_store = MEMORY")

    def _connection(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        self._close.callback(connection.close)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def _descriptor(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._close.callback(os.close, descriptor)
        return descriptor

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
