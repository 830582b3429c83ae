"""The time of day, and how much of it has passed.

A system's clock is set: by hand, by a time server, after a pause of the machine. What such a step claims has not
passed, so it ends nothing: sessions idle and age by the monotonic clock, and what is kept for days is kept for days by
both. Stamps that others read, and what is valid until a date, follow the system's clock once a step has lasted.
"""

import time
from collections.abc import Callable

STEP_S = 1.0  # less is not worth following
LASTING_S = 300.0


class Clock:
    """Seconds since the epoch. `wall` and `monotonic` are for tests."""

    def __init__(self) -> None:
        self.wall: Callable[[], float] = time.time
        self.monotonic: Callable[[], float] = time.monotonic
        self._start = self._offset = self._stepped_to = self.wall() - self.monotonic()
        self._stepped_at = 0.0

    def steady(self) -> float:
        """What the system's clock would show, had nobody set it since the start."""
        return self.monotonic() + self._start

    def now(self) -> float:
        """What the system's clock shows, unless it was set in the last minutes: then what it would show without."""
        monotonic = self.monotonic()
        offset = self.wall() - monotonic
        if abs(offset - self._offset) < STEP_S:
            self._stepped_to = self._offset
        elif abs(offset - self._stepped_to) >= STEP_S:
            self._stepped_to, self._stepped_at = offset, monotonic
        elif monotonic - self._stepped_at >= LASTING_S:
            self._offset = offset
        return monotonic + self._offset

    def at_least(self) -> float:
        """The earlier of both: who deletes what is older than some days must not be deceived by either."""
        return min(self.steady(), self.now())

    def shown(self, steady: float) -> float:
        """A time that `steady` gave, as others know it."""
        self.now()
        return steady + (self._offset - self._start)

    def known(self, shown: float) -> float:
        """The other way round; what seems to lie ahead is now."""
        self.now()
        return min(shown - (self._offset - self._start), self.steady())


CLOCK = Clock()
