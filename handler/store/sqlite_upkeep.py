"""What keeps the SQLite files small and their start short: done in the thread that syncs, in pieces that hold up the
writer for a moment."""

import contextlib
import heapq
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator

from dnc_serve.handler.store.sqlite_files import PAGE_BYTES, SQLiteFiles
from dnc_serve.handler.store.sqlite_sessions import Session, crc_of
from dnc_serve.handler.store.sqlite_writer import INSERT_GARBAGE, SQLiteWriter

logger = logging.getLogger(__name__)

CHECKPOINT_BYTES = 16 << 20  # about how much log there may be before it moves into the file
LOG_AT_MOST = 8  # times as much, and commits wait until it has begun anew
_PASSES = 3  # one moves most of the log, the next ones what was committed meanwhile
SETTLE_RECORDS = 1 << 15  # a start reads at most about so many
_KNOWN = 1 << 16  # sessions, a few hundred bytes each, of which it is remembered for the next record where they stand
_ROWS = 256  # written or deleted at once, or so many bytes of them
_SWEEP_BYTES = 2 << 20
_VACUUM_PAGES = 128
_SPARE_PAGES = 2048  # free pages that a file keeps for what comes next
_UPDATE_STANDING = (
    "UPDATE sessions SET ordinal = ?, position = ?, experience = ?, last_used_at = ?, row = ?, total = ?, pruned = ?, "
    "pruned_total = ?, standing_crc = ? WHERE key = ?"
)
_SELECT_DEAD = "SELECT session, ordinal, previous, length(body) FROM records WHERE row = ?"


class SQLiteUpkeep:
    """Settles where sessions stand, deletes what nobody needs, gives pages back to the file system, and begins the log
    anew."""

    def __init__(
        self, files: SQLiteFiles, writer: SQLiteWriter, writing: threading.Lock, reading: threading.Lock
    ) -> None:
        self._files = files
        self._writer = writer
        self._writing = writing
        self._reading = reading
        self._behind: list[Session] = []  # to be settled before all records up to a row are
        self._settling = 0
        self._vacuuming = True
        self._checkpoint_at = 0  # bytes of log, after an attempt that could not begin it anew

    def run(self) -> None:
        """One piece of each kind that is due."""
        sessions = self._writer.sessions
        if self._behind or sessions.last_row - sessions.settled >= SETTLE_RECORDS:
            self.settle(_ROWS)
        if self._writer.dead_bytes >= _SWEEP_BYTES:
            self._sweep()
            self._vacuuming = True
        elif self._vacuuming:
            self._vacuum()
        if self._writer.log_bytes > max(CHECKPOINT_BYTES, self._checkpoint_at):
            self._checkpoint()

    def settle(self, at_most: int) -> None:
        """Notes in their rows where some of the sessions stand that have gone on since the last were settled; once all
        of these are noted, so is that they are."""
        sessions = self._writer.sessions
        if not self._behind:
            with self._writing:
                self._settling, standings = sessions.last_row, list(sessions.standings.values())
            self._behind = sorted(  # by their keys: neighbours share a page
                standing.session
                for standing in standings
                if standing.row > sessions.settled or standing.session.id in sessions.claimed
            )
        last = len(self._behind) <= at_most
        with self._changing() as connection:
            # They may have gone on meanwhile, or be gone.
            part = [sessions.standings.get(session.id) for session in self._behind[:at_most]]
            rows = [(*standing.standing_columns(), standing.session.key) for standing in part if standing]
            connection.executemany(_UPDATE_STANDING, rows)
            if last:
                settled = (1, self._settling, crc_of(self._settling))
                connection.execute("INSERT OR REPLACE INTO settled VALUES (?, ?, ?)", settled)
            self._writer.log_bytes += len(rows) * PAGE_BYTES  # at most
        del self._behind[:at_most]
        if last:
            with self._writing:
                sessions.settle(self._settling, _KNOWN)

    def _sweep(self) -> None:
        """Deletes some dead records, the newest first: so what is left can still be found from the one that is next,
        and of all sessions together, since neighbours share a page."""
        with self._changing() as connection:
            # Each of these rows may lead to others, but none to one that comes after all of them.
            garbage = connection.execute("SELECT * FROM garbage ORDER BY row DESC LIMIT ?", (_ROWS,)).fetchall()
            heap = [(-row, *others) for row, *others, crc in garbage if crc_of(row, *others) == crc]
            dead: list[tuple[int]] = []
            swept = 0
            while heap and len(dead) < _ROWS and swept < _SWEEP_BYTES:
                row, session, ordinal, above = heapq.heappop(heap)
                found = connection.execute(_SELECT_DEAD, (-row,)).fetchone()
                if found is None or found[:2] != (session, ordinal):
                    logger.error("dead records of session %d are lost, from ordinal %d down", session, ordinal)
                    continue
                dead.append((-row,))
                swept += found[3]
                if ordinal - 1 > above:
                    heapq.heappush(heap, (-found[2], session, ordinal - 1, above))
            connection.executemany("DELETE FROM records WHERE row = ?", dead)
            connection.executemany("DELETE FROM garbage WHERE row = ?", [(row,) for row, *_ in garbage])
            left = [(-row, *others) for row, *others in heap]
            connection.executemany(INSERT_GARBAGE, [(*one, crc_of(*one)) for one in left])
            self._writer.dead_bytes -= swept + 2 * PAGE_BYTES * len(dead)
            if not heap and len(garbage) < _ROWS:
                self._writer.dead_bytes = 0
            self._writer.log_bytes += len(dead) * PAGE_BYTES  # at most

    def _vacuum(self) -> None:
        connection = self._files.writer
        with self._writing:
            (spare,) = connection.execute("PRAGMA freelist_count").fetchone()
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            self._vacuuming = spare > max(_SPARE_PAGES, pages // 4)
            if self._vacuuming:
                # It takes one step for each page, and `execute` would stop after the first.
                connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
                self._writer.log_bytes += 2 * _VACUUM_PAGES * PAGE_BYTES

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction between those of commits."""
        with self._writing, self._files.writer as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def _checkpoint(self) -> None:
        """Moves the log into the file beside the commits, which wait for none of the syncs that this takes, and begins
        it anew if there was a moment for that.

        SQLite syncs the log before it moves anything, and the file once it has moved all. Only then may the log begin
        anew: where commits come faster than that, it goes on growing, as far as `LOG_AT_MOST`.
        """
        for _ in range(_PASSES):
            counted = self._writer.log_bytes
            _, frames, _ = self._files.checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            with _if_free(self._writing) as no_commit, _if_free(self._reading) as no_reader:
                if no_commit and no_reader and self._writer.log_bytes == counted and self._begin_log():
                    return
        if frames > 0:
            # Not only was it an estimate: a commit right behind one that moved all has begun the log anew by itself.
            with self._writing:
                self._writer.log_bytes += frames * PAGE_BYTES - counted
        if self._writer.log_bytes > LOG_AT_MOST * CHECKPOINT_BYTES:
            # What is synced now need not be synced while commits wait.
            os.fdatasync(self._files.database)
            with self._writing, self._reading:
                if self._begin_log():
                    return
        self._checkpoint_at = self._writer.log_bytes + CHECKPOINT_BYTES // 4

    def _begin_log(self) -> bool:
        """Begins the log anew, while nobody of ours is at the file; False if somebody else is."""
        busy, _, _ = self._files.checkpointer.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        if busy:
            return False
        self._writer.log_bytes = PAGE_BYTES
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
