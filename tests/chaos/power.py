"""What a power loss leaves of a SQLite store: of the log, what was synced, and any of the blocks written since.

The server notes at each `fdatasync` of its log how many frames were whole before it began; these are safe once it
returned. SQLite syncs by itself, too: before it moves frames into the database it syncs the log up to there, and the
index that it shares with other processes says how far it meant to move them. When it begins the log anew, all that
was in it is in the database and synced there.

So the frames that are safe are those of the last note, if it was of the present log, and those that SQLite meant to
move. The database needs no cutting: whatever is written to it is in the safe part of the log until it is synced.
"""

import os
import random
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from dnc_serve.handler.journal.stores.sqlite_files import PAGE_BYTES

LOG, INDEX, NOTE = "sessions.db-wal", "sessions.db-shm", "synced"
# While the first of these files is there, no sync begins; the second one says that one waits for that.
HOLD, HELD = "hold-syncs", "held"
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
        while (state_dir / HOLD).exists():
            (state_dir / HELD).touch()
            time.sleep(0.001)
        end = LogEnd.of(state_dir)
        sync_file(descriptor)
        os.pwrite(note, _NOTE.pack(end.salt, end.frames), 0)

    os.fdatasync = sync_and_note


def lose_power(state_dir: Path, chance: random.Random | None) -> int:
    """Takes from the files of a killed server what was not synced; returns how many frames of the log that were.

    With `chance`, some of the blocks that were written meanwhile had reached the medium; without, none.
    """
    end = LogEnd.of(state_dir)
    salt, noted = _NOTE.unpack((state_dir / NOTE).read_bytes().ljust(_NOTE.size, b"\0"))
    safe = max(end.meant_to_move, noted if salt == end.salt else 0)
    keep = LOG_HEADER_BYTES + safe * FRAME_BYTES
    log = state_dir / LOG
    written = log.read_bytes()
    rest = b""
    if chance is not None and chance.random() < 0.5:
        blocks = [written[start : start + BLOCK_BYTES] for start in range(keep, len(written), BLOCK_BYTES)]
        rest = b"".join(block if chance.random() < 0.5 else bytes(len(block)) for block in blocks)
    log.write_bytes(written[:keep] + rest)
    (state_dir / INDEX).unlink()  # made anew from the log
    return max(0, end.frames - safe)
