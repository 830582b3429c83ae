"""Python's collector of cycles, kept from walking over all sessions again and again.

A full collection looks at every container that is alive, and everybody waits: 20 ms for 10,000 sessions. So what has
lived for a second is set aside, where collections don't look; a cycle among that is found once in a while, when all is
looked at.
"""

import gc
import time

THAW_SECONDS = 900.0


class Garbage:
    """To be told of every second."""

    def __init__(self) -> None:
        self._thaw_at = 0.0

    def settle(self) -> None:
        """Sets aside what is alive: most seconds after a look at what is young, seldom after one at everything."""
        now = time.monotonic()
        if now < self._thaw_at:
            gc.collect(1)
        else:
            self._thaw_at = now + THAW_SECONDS
            gc.unfreeze()
            gc.collect()
        gc.freeze()
