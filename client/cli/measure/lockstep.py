"""Callers that each wait for their answer before they ask again, timed together.

It stands by itself: the clients of other servers, which live in environments of their own, use it too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

Exchange = Callable[[], Awaitable[object]]
LONGER_AT_MOST_S = 30.0


@dataclass(frozen=True)
class Span:
    """What is measured: `seconds` of calls after `warm_up_s` that are not counted."""

    seconds: float
    warm_up_s: float


@dataclass(frozen=True)
class Figures:
    """What callers saw in a span of time: milliseconds of a call, and timesteps a second of all of them."""

    calls: int
    p50_ms: float
    p99_ms: float
    timesteps_per_s: float


class Clock:
    """Collects the calls of a span that begins now; with slow calls it lasts until each caller was answered twice."""

    def __init__(self, span: Span, callers: int) -> None:
        self._counted_from = time.perf_counter() + span.warm_up_s
        self._until = self._counted_from + span.seconds
        self._at_the_latest = self._until + LONGER_AT_MOST_S
        self._callers = callers
        self._took: list[float] = []
        self._last = self._counted_from

    @property
    def over(self) -> bool:
        now = time.perf_counter()
        return now >= self._until and (len(self._took) >= 2 * self._callers or now >= self._at_the_latest)

    def called(self, started: float) -> None:
        """A call that began at `started` has its answer now."""
        if self._counted_from <= (now := time.perf_counter()) and not self.over:
            self._took.append(now - started)
            self._last = now

    def figures(self, timesteps: int) -> Figures:
        """Of calls of so many timesteps each; raises RuntimeError if none ended within the span."""
        if not self._took:
            raise RuntimeError(f"no call was answered within {self._at_the_latest - self._counted_from:.0f} s")
        p50, p99 = np.percentile(self._took, (50, 99)) * 1000
        rate = len(self._took) * timesteps / (self._last - self._counted_from)
        return Figures(len(self._took), float(p50), float(p99), rate)


async def lockstep(callers: Sequence[Exchange], timesteps: int, span: Span) -> Figures:
    """All callers at once, each one call after the other."""
    clock = Clock(span, len(callers))

    async def repeat(exchange: Exchange) -> None:
        while not clock.over:
            started = time.perf_counter()
            await exchange()
            clock.called(started)

    await asyncio.gather(*(repeat(exchange) for exchange in callers))
    return clock.figures(timesteps)
