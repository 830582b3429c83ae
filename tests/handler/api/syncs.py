"""A disk whose syncs hang, or fail, as long as a test wants."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def held_syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No sync of this process returns before the end."""
    go_on, sync_file = threading.Event(), os.fdatasync

    def held(descriptor: int) -> None:
        go_on.wait()
        sync_file(descriptor)

    monkeypatch.setattr(os, "fdatasync", held)
    try:
        yield
    finally:
        go_on.set()
        monkeypatch.setattr(os, "fdatasync", sync_file)


@contextmanager
def failing_syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every sync of this process fails."""
    sync_file = os.fdatasync

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(os, "fdatasync", fail)
    try:
        yield
    finally:
        monkeypatch.setattr(os, "fdatasync", sync_file)
