"""The artifact by itself: what a server can't be faster than. Run in a process of its own, see `aside`."""

import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnc_serve.handler.engine.model_runner import ModelRunner

TURNS = 3
ROWS = (1, 8, 64)  # where any number may be stepped together


def tick_us(artifact: str, device: str, code: str, seconds: float) -> dict[int, float]:
    """Microseconds of one tick by the rows, a call a tick."""
    runner = _runner(artifact, device, code)
    sizes = runner.sizes or ROWS
    return {rows: rows_seconds(runner, rows, 1, seconds / len(sizes)) * 1e6 for rows in sizes}


def timesteps_per_s(artifact: str, device: str, code: str, ticks: int, seconds: float) -> float:
    """Of as many rows as are stepped together, unrolled by so many ticks a call."""
    runner = _runner(artifact, device, code)
    return runner.largest * ticks / rows_seconds(runner, runner.largest, ticks, seconds)


def rows_seconds(runner: "ModelRunner", rows: int, ticks: int, seconds: float) -> float:
    """Seconds of one call, states carried on."""
    import torch

    inputs = torch.randint(0, 2, (ticks, rows, runner.input_size), device=runner.device).float()
    states = torch.zeros(rows, runner.layout.size, device=runner.device)

    def call() -> None:
        nonlocal states
        outputs, states = runner.run(inputs, states)
        outputs.cpu()

    return seconds_of(call, seconds)


def seconds_of(call: Callable[[], None], seconds: float) -> float:
    """Seconds of one call: the median of a few turns."""
    turns = []
    for _ in range(TURNS):
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds / TURNS or not calls:
            call()
            calls += 1
        turns.append(elapsed / calls)
    return statistics.median(turns)


@cache
def _runner(artifact: str, device: str, code: str) -> "ModelRunner":
    """As a server chooses it."""
    from dnc_serve.handler.engine.model_runner import choose_runner
    from dnc_serve.model.export import load_artifact

    return choose_runner(load_artifact(artifact, device), Path(artifact), device, code, [])
