"""What a power loss leaves of a SQLite store: of the log, what was synced, and any of the blocks written since.

The server notes at each `fdatasync` of its log how many frames were whole before it began; these are safe once it
returned. SQLite syncs by itself, too: before it moves frames into the database it syncs the log up to there, and the
index that it shares with other processes says how far it meant to move them. When it begins the log anew, all that
was in it is in the database and synced there.

So the frames that are safe are those of the last note, if it was of the present log, and those that SQLite meant to
move. The database needs no cutting: whatever is written to it is in the safe part of the log until it is synced.
"""

import asyncio
import os
import random
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from dnc_serve.handler.store.sqlite_files import PAGE_BYTES
from tests.histories.recorder import may_lose
from tests.server_process import ServerProcess
from tests.waiting import until

LOG, INDEX, NOTE = "sessions.db-wal", "sessions.db-shm", "synced"
HOLD = "hold-syncs"  # while this file is there, nothing that is written is synced
LOG_HEADER_BYTES = 32
FRAME_BYTES = 24 + PAGE_BYTES
BLOCK_BYTES = 4096  # what a disk writes as a whole, or not
_NOTE = struct.Struct("<8sI")


@dataclass(frozen=True, slots=True)
class LogEnd:
    """How far the log goes, as SQLite's index says (see "WAL-Index File Format" in its documentation)."""

    salt: bytes  # another one each time the log begins anew
    frames: int
    meant_to_move: int

    @classmethod
    def of(cls, state_dir: Path) -> "LogEnd":
        with (state_dir / INDEX).open("rb") as index:
            while True:
                header = os.pread(index.fileno(), 136, 0)
                if header[:48] == header[48:96]:  # written twice, so that nobody reads half of it
                    (frames,) = struct.unpack_from("=I", header, 16)
                    (meant_to_move,) = struct.unpack_from("=I", header, 128)
                    return cls(header[32:40], frames, meant_to_move)


def note_syncs(state_dir: Path) -> None:
    """From now on, this process notes in the state folder what a power loss can't take."""
    state_dir.mkdir(parents=True, exist_ok=True)
    note = os.open(state_dir / NOTE, os.O_RDWR | os.O_CREAT)
    sync_file = os.fdatasync

    def sync_and_note(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name != LOG:
            sync_file(descriptor)
            return
        end = LogEnd.of(state_dir)  # first, so that what is written while syncs are held up is never in it
        # Those of the start are let through.
        while (state_dir / HOLD).exists() and threading.current_thread().name == "dnc-journal":
            time.sleep(0.001)
        sync_file(descriptor)
        os.pwrite(note, _NOTE.pack(end.salt, end.frames), 0)

    os.fdatasync = sync_and_note


def unsynced(state_dir: Path) -> int:
    """Frames of the log that a power loss may take."""
    end = LogEnd.of(state_dir)
    return max(0, end.frames - _safe(state_dir, end))


def _safe(state_dir: Path, end: LogEnd) -> int:
    salt, noted = _NOTE.unpack((state_dir / NOTE).read_bytes().ljust(_NOTE.size, b"\0"))
    return max(end.meant_to_move, noted if salt == end.salt else 0)


def lose_power(state_dir: Path, chance: random.Random | None = None) -> int:
    """Takes from the files of a killed server what was not synced; returns how many frames of the log that were.

    With `chance`, some of the blocks that were written meanwhile had reached the medium; without, none.
    """
    lost = unsynced(state_dir)
    keep = LOG_HEADER_BYTES + _safe(state_dir, LogEnd.of(state_dir)) * FRAME_BYTES
    log = state_dir / LOG
    written = log.read_bytes()
    rest = b""
    if chance is not None and chance.random() < 0.5:
        blocks = [written[start : start + BLOCK_BYTES] for start in range(keep, len(written), BLOCK_BYTES)]
        rest = b"".join(block if chance.random() < 0.5 else bytes(len(block)) for block in blocks)
    log.write_bytes(written[:keep] + rest)
    (state_dir / INDEX).unlink()  # made anew from the log
    return lost


class PoweredServer(ServerProcess):
    """A server whose power goes, and comes back with what is left in the state folder."""

    module = "tests.powered_serving"

    async def synced(self) -> None:
        """Returns when a power loss would take nothing."""
        await until(lambda: not unsynced(self.state_dir), "all that was written is synced")

    def hold_syncs(self) -> None:
        """Nothing that is written from now on is synced, until the power is lost."""
        (self.state_dir / HOLD).touch()

    def lose_power(self, chance: random.Random | None = None) -> int:
        """Frames of the log that were lost: while syncs are held up, all that were not synced."""
        with may_lose():
            self.kill()
            held = (self.state_dir / HOLD).exists()
            lost = lose_power(self.state_dir, None if held else chance)
        (self.state_dir / HOLD).unlink(missing_ok=True)
        return lost

    def lose_power_and_start(self, hold_syncs: bool = False) -> None:
        """It comes back, with its syncs held up again if so wanted."""
        self.lose_power()
        if hold_syncs:
            self.hold_syncs()
        self.start()


@asynccontextmanager
async def powered(artifact: Path, state_dir: Path, **settings: object) -> AsyncIterator[PoweredServer]:
    """A server that is started, and ended."""
    server = PoweredServer(artifact, state_dir, **settings)
    try:
        await asyncio.to_thread(server.start)
        yield server
    finally:
        await asyncio.to_thread(server.kill)
