"""Which chunks are stepped together, and for how many ticks.

Continuous batching: a batch takes a slice of time, and chunks with ticks left go on in a later one, so that a long
chunk neither holds up short ones nor is held up by them. Nothing is waited for: what has come in is stepped.
"""

from collections import deque
from dataclasses import dataclass
from heapq import nsmallest
from operator import attrgetter

import numpy as np

from dnc_serve.handler.arrays import Array
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.requests import Chunk, Replay
from dnc_serve.handler.engine.session import Session


@dataclass(eq=False, slots=True)
class Run:
    """A chunk under way: it works on a row of its own, which becomes the session's when the chunk is committed."""

    session: Session
    request: Chunk | Replay
    source: int  # the row that holds the state before the next tick
    row: int  # of the state that it works on
    runner: ModelRunner
    rest: int  # ticks that it has left
    reset_scope: str = ""  # what is reset before the first tick: "", "experience" or "all"
    outputs: Array | None = None  # [T, *shape], as far as it has come
    finite: bool = True  # its outputs and the state that it has come to; may be False where only a sum overflows
    debug: dict[str, Array] | None = None

    def next_inputs(self, ticks: int) -> Array:
        """The inputs of the next ticks [ticks, *shape]."""
        inputs = self.request.inputs
        done = len(inputs) - self.rest
        return inputs if ticks == len(inputs) else inputs[done : done + ticks]

    def advance(self, outputs: Array, finite: bool) -> None:
        """The next ticks gave these outputs [ticks, *shape]."""
        self.source = self.row
        self.rest -= len(outputs)
        self.outputs = outputs if self.outputs is None else np.concatenate((self.outputs, outputs))
        self.finite = self.finite and finite


@dataclass(slots=True)
class Batch:
    """Runs that are stepped together by one model runner, each for a number of ticks of its own."""

    runner: ModelRunner
    runs: list[Run]
    ticks: list[int]
    failed: bool = False
    tick_s: float = 0.0


class BatchScheduler:
    """Runs in the order in which they were stepped last, those that never were behind them.

    `slice_s` is about how long a batch takes. Where more wait than a batch holds, half of it is for those that have
    waited longest, and half for those that have the least left: neither waits for the other.
    """

    def __init__(self, slice_s: float) -> None:
        self._slice_s = slice_s
        self.runs: deque[Run] = deque()

    def add(self, run: Run) -> None:
        """A run that has ticks left waits for its next ones."""
        self.runs.append(run)

    def next_batch(self, max_rows: int | None = None) -> Batch | None:
        """The next batch, of at most so many rows; None if nothing waits."""
        if not self.runs:
            return None
        runner = self.runs[0].runner
        rows = runner.max_rows if max_rows is None else min(max_rows, runner.max_rows)
        chosen = [run for run in self.runs if run.runner is runner]
        if len(chosen) > rows:
            longest_waiting = chosen[: (rows + 1) // 2]
            chosen = longest_waiting + nsmallest(rows // 2, chosen[len(longest_waiting) :], key=attrgetter("rest"))
        if len(chosen) == len(self.runs):
            self.runs.clear()
        else:
            taken = set(chosen)
            self.runs = deque(run for run in self.runs if run not in taken)
        most = max(1, int(self._slice_s / runner.seconds(len(chosen))))
        return Batch(runner, chosen, [min(run.rest, most) for run in chosen])
