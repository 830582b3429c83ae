"""A process that ends when the process above it does, however that ended.

Run as a program, `parent.py PARENT_PID COMMAND…` becomes the command, so bound; it is run by a bare interpreter, hence
nothing but the standard library here. (`preexec_fn` would run Python between fork and exec of a process with threads.)
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
WATCH_S = 1.0


def die_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends; outlives an exec. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(1)


def watch(parent: int, then: Callable[[], None]) -> None:
    """Calls `then` when the parent is gone: for systems without a parent-death signal, and for its blind spots."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        then()

    threading.Thread(target=look, name="dnc-parent-watch", daemon=True).start()


def adopt_orphans() -> None:
    """Makes this process the parent of whatever its children leave behind, so that it can end those too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  a shell would outlive it
