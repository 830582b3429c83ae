"""Ctrl-C and SIGTERM as a wish to stop between two iterations, instead of in the midst of one."""

import signal
import threading
from types import FrameType


class Interrupt:
    """While entered in the main thread, the first such signal makes it true; the second acts as it always does."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._before: dict[int, signal.Handlers | int | object | None] = {}

    def __bool__(self) -> bool:
        return self._asked.is_set()

    def ask(self, number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
        """Wishes to stop."""
        self._asked.set()
        self._restore()

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self.ask)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
