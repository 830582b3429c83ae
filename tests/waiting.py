"""Waiting for what a test has caused.

The time is a net under a test that would hang. It decides nothing, so a busy machine changes no outcome.
"""

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

import psutil

PATIENCE_S = 240.0
LOOK_AGAIN_S = 0.01


def wait_until(holds: Callable[[], object], what: object, patience_s: float = PATIENCE_S) -> None:
    """Returns when it holds."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}"
        time.sleep(LOOK_AGAIN_S)


async def until(holds: Callable[[], object], what: object) -> None:
    """The same, while the loop goes on."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        await asyncio.sleep(LOOK_AGAIN_S)


def freeze(pid: int) -> None:
    """Returns when the process stands still: some of its threads may run on for a while after the signal was sent."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, f"process {pid} stands still")


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process stands still meanwhile."""
    try:
        freeze(pid)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def shown_until(terminal: int, expected: bytes) -> bytes:
    """What appears on a terminal until this does, and some of what follows."""
    shown, deadline = b"", time.monotonic() + PATIENCE_S
    while expected not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, (expected, shown)
        shown += os.read(terminal, 4096)
    return shown
