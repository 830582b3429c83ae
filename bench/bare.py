"""The model by itself, as the server runs it: what a server can't be faster than. Run in a process of its own."""

import statistics
import time
from functools import cache

from dnc_serve.client.cli.load import bits
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.model.artifact import load_artifact

ROUNDS = 3


@cache
def runner_of(artifact: str, device: str) -> ModelRunner:
    """What a server of this artifact chooses."""
    return choose_runner(load_artifact(artifact, device), device, "auto", [])


def tick_ms(artifact: str, device: str, seconds: float) -> float:
    """Milliseconds of a tick of one row, a call a tick."""
    return _call_s(runner_of(artifact, device), 1, 1, seconds) * 1000


def timesteps_per_s(artifact: str, device: str, seconds: float, ticks: int) -> float:
    """Of as many rows as are stepped together at most, by so many ticks a call."""
    runner = runner_of(artifact, device)
    return runner.max_rows * ticks / _call_s(runner, runner.max_rows, ticks, seconds)


def _call_s(runner: ModelRunner, rows: int, ticks: int, seconds: float) -> float:
    """Seconds of one call, states carried on: the median of a few rounds."""
    states = StateRows(rows, runner.layout, runner.device)
    numbers, inputs = range(rows), [bits(ticks, runner.inputs.size)] * rows
    took = []
    for _ in range(ROUNDS):
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds / ROUNDS or not calls:
            runner.step(states, numbers, numbers, inputs)
            calls += 1
        took.append(elapsed / calls)
    return statistics.median(took)
