"""A file that is read again when it changes, so that tokens and keys change without a restart."""

import logging
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)


class WatchedFile:
    """Calls `read` for the file as it is at first and after each change; `what` names its content in the log.

    What `read` raises, ValueError or OSError, is raised for the first reading. Later, what was read before stays.
    """

    def __init__(self, path: Path, what: str, read: Callable[[Path], None]) -> None:
        self._path = path
        self._what = what
        self._read = read
        self._stamp = self._stamp_now()
        read(path)

    def refresh(self) -> None:
        """Reads the file again if it has changed."""
        try:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._stamp = stamp  # a wrong file is told once
                self._read(self._path)
        except (OSError, ValueError) as exc:
            logger.error("the %s stay as they were: %s", self._what, exc)

    def _stamp_now(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size
