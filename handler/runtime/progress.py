"""What a start waits for, told while it lasts."""

import logging
import threading
import time
from typing import Self

logger = logging.getLogger(__name__)

TELL_EVERY_S = 5.0
# A start that takes longer is told as a warning, so that whoever logs no more than those isn't left in the dark.
LONG_S = 30.0


class Progress:
    """A line of the log every five seconds, while it is open as a context."""

    def __init__(self) -> None:
        self._awaited = "the start"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="dnc-progress", daemon=True)

    def awaits(self, what: str) -> None:
        """From now on the start waits for this."""
        self._awaited = what

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """The start is over."""
        self._ended.set()

    def _tell(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(TELL_EVERY_S):
            seconds = time.monotonic() - started
            level = logging.WARNING if seconds > LONG_S else logging.INFO
            logger.log(level, "still starting, after %.0f s: waiting for %s", seconds, self._awaited)
