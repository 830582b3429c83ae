"""Folders for what syncs its files all the time."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")


@contextmanager
def memory_folder() -> Iterator[Path]:
    """In memory where there is one, so that no disk is waited for."""
    with tempfile.TemporaryDirectory(prefix="dnc-test-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)
