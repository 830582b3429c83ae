"""Sessions that stream while what serves them is disturbed, and the comparison with an uninterrupted run."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np

from dnc_serve.client import AsyncClient
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.model.artifact import load_artifact
from tests.handler.harness import INPUT_SIZE
from tests.waiting import until

CHUNK = 4


def random_inputs(seed: int, timesteps: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), (timesteps, INPUT_SIZE))


class Stream:
    """One session's client: sends chunks until told to stop, and keeps what it got."""

    def __init__(self, number: int) -> None:
        self.name = f"stream-{number}"
        self.number = number
        self.outputs: list[np.ndarray] = []

    def inputs(self, chunk: int) -> np.ndarray:
        return random_inputs(1000 * self.number + chunk, CHUNK)

    async def run(self, client: AsyncClient, stop: asyncio.Event) -> None:
        async with client.session(self.name) as session:
            while not stop.is_set():
                self.outputs.append(await session.step(self.inputs(len(self.outputs))))
                await asyncio.sleep(0.01)


async def live(
    targets: Sequence[str], streams: Sequence[Stream], disturb: Callable[[], Awaitable[None]], timeout_s: float = 600.0
) -> list[int]:
    """Streams all sessions while they are disturbed; returns the positions at which they stand in the end."""
    stop = asyncio.Event()
    async with AsyncClient(list(targets), timeout_s=timeout_s) as client:
        running = [asyncio.create_task(stream.run(client, stop)) for stream in streams]
        try:
            await disturb()
        finally:
            stop.set()
            await asyncio.gather(*running)
        positions = []
        for stream in streams:
            async with client.session(stream.name) as session:
                positions.append((await session.info()).position)
        return positions


async def none_stands_still(streams: Sequence[Stream]) -> None:
    before = [len(stream.outputs) for stream in streams]
    await until(
        lambda: all(len(stream.outputs) >= count + 3 for stream, count in zip(streams, before, strict=True)),
        "no stream stands still",
    )


def lost_doubled_differing(artifact: Path, streams: Sequence[Stream], positions: Sequence[int]) -> tuple[int, int, int]:
    """Timesteps, compared with what an uninterrupted run gives."""
    runner = choose_runner(load_artifact(artifact), "cpu", "auto", [])
    lost = doubled = differing = 0
    for stream, position in zip(streams, positions, strict=True):
        truth, got = _uninterrupted(runner, stream), np.concatenate(stream.outputs)
        differing += int((truth != got).any(axis=1).sum())
        lost += max(0, len(got) - position)
        doubled += max(0, position - len(got))
    print(f"{sum(positions)} timesteps: lost {lost}, doubled {doubled}, differing {differing}")
    return lost, doubled, differing


def _uninterrupted(runner: ModelRunner, stream: Stream) -> np.ndarray:
    inputs = np.concatenate([stream.inputs(chunk) for chunk in range(len(stream.outputs))])
    outputs, _ = runner.step(StateRows(1, runner.layout, runner.device), [0], [0], [inputs])
    return outputs[0]
