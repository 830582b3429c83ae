"""Callers that each wait for their answer before they ask again, timed together.

It stands by itself: the clients of other servers, which live in environments of their own, use it too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

Exchange = Callable[[], Awaitable[object]]


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
    """Collects the calls of a span that begins now."""

    def __init__(self, span: Span) -> None:
        self._counted_from = time.perf_counter() + span.warm_up_s
        self._seconds = span.seconds
        self._until = self._counted_from + span.seconds
        self._took: list[float] = []

    @property
    def over(self) -> bool:
        return time.perf_counter() >= self._until

    def called(self, started: float) -> None:
        """A call that began at `started` has its answer now."""
        now = time.perf_counter()
        if self._counted_from <= now < self._until:
            self._took.append(now - started)

    def figures(self, timesteps: int) -> Figures:
        """Of calls of so many timesteps each; raises RuntimeError if none ended within the span."""
        if not self._took:
            raise RuntimeError(f"no call was answered within {self._seconds} s")
        p50, p99 = np.percentile(self._took, (50, 99)) * 1000
        return Figures(len(self._took), float(p50), float(p99), len(self._took) * timesteps / self._seconds)


async def lockstep(callers: Sequence[Exchange], timesteps: int, span: Span) -> Figures:
    """All callers at once, each one call after the other."""
    clock = Clock(span)

    async def repeat(exchange: Exchange) -> None:
        while not clock.over:
            started = time.perf_counter()
            await exchange()
            clock.called(started)

    await asyncio.gather(*(repeat(exchange) for exchange in callers))
    return clock.figures(timesteps)
