"""The worker that `dnc serve` starts itself: `python -m dnc_serve.handler.plain.worker PARENT ARTIFACT…`.

ARTIFACTs are the folders of its models. PARENT is the process id of the `dnc serve`, with which it ends. SIGTERM makes
it drain and end; the `dnc serve` then starts another, unless it is stopping itself.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from dnc_serve.handler.runtime.worker import Worker

logger = logging.getLogger(__name__)


def available_device(wanted: str) -> str:
    """The GPU of this machine, if there is one that torch can use, unless the configuration names a device."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main(parent: int, artifacts: Sequence[Path]) -> None:
    """Serves until it is told to leave. Ends the process with 0, or with 1 if it can't start."""
    worker = Worker()
    try:
        config = worker.initialize(parent, artifacts, available_device)
    except Exception:  # `dnc serve` has been told the cause, in one line
        logger.debug("the worker can't start", exc_info=True)
        os._exit(1)

    def leave() -> None:
        worker.drain(config.grace_s)
        os._exit(0)

    # In a thread: the handler of a signal runs between two steps of the main thread, and must not wait for its locks.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=leave, name="dnc-leave").start())
    while True:
        signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
