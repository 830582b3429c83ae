"""Folders that pytest's own are too slow or too deep for."""

import atexit
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")


@contextmanager
def memory_folder() -> Iterator[Path]:
    """In memory where there is one, so that no disk is waited for."""
    with tempfile.TemporaryDirectory(prefix="dnc-test-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def temp_folder(of: Path) -> Path:
    """Where servers whose state lies in that folder have their temp files: sockets must not lie deep."""
    folder = Path(tempfile.gettempdir()) / f"dnc-{zlib.crc32(str(of).encode()):08x}"
    if not folder.exists():
        folder.mkdir()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
