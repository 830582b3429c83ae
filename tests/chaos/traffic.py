"""Many sessions at work through everything that happens to their server, and the count of what went wrong."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import numpy as np

from dnc_serve.client import AsyncClient
from dnc_serve.client.arrays import Float32
from dnc_serve.client.session import AsyncSession
from dnc_serve.handler.engine.model_runner import ModelRunner
from tests.chaos.truth import Tally, Truth, random_inputs

LONGEST_CHUNK = 8
# How long a killed server may take until somebody is answered again.
PATIENCE_S = 600.0
# Every so manieth session steps and waits instead of streaming, and resets its experience now and then.
LOCKSTEP_EVERY = 8
RESET_CHANCE = 0.1


class Traffic:
    """Sessions `s0`, `s1`, … with random inputs, until `finish` brings all of them to one length."""

    def __init__(self, client: AsyncClient, sessions: int, pause_s: float, prefix: str = "s") -> None:
        self._client = client
        self._prefix = prefix
        self._pause_s = pause_s
        self._target: int | None = None
        self._answered = asyncio.Event()
        self.inputs: list[list[Float32]] = [[] for _ in range(sessions)]
        self.outputs: list[list[Float32]] = [[] for _ in range(sessions)]
        self.positions = [0] * sessions
        self.dumps: list[dict[str, Float32]] = [{} for _ in range(sessions)]
        self.resets: set[tuple[int, int]] = set()  # (position, session)
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(sessions)]

    async def progress(self) -> None:
        """Returns when somebody has been answered from now on; raises what ended a session before its time."""
        self._answered.clear()
        waiting = asyncio.create_task(self._answered.wait())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.wait([waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        for task in self._tasks:
            if task.done():
                task.result()

    async def all_progress(self) -> None:
        """Returns when each session has had two more answers: the second one is to what was sent from now on."""
        wanted = [len(outputs) + 2 for outputs in self.outputs]
        while any(len(outputs) < count for outputs, count in zip(self.outputs, wanted, strict=True)):
            await self.progress()

    async def finish(self) -> None:
        """Lets every session come to the length of the longest, and looks at what each is then."""
        self._target = max(sum(map(len, chunks)) for chunks in self.inputs)
        await asyncio.gather(*self._tasks)

    def abandon(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _run(self, number: int) -> None:
        async with self._client.session(f"{self._prefix}{number}") as session:
            if number % LOCKSTEP_EVERY:
                async for outputs in session.stream(self._chunks(number)):
                    self._take(number, outputs)
            else:
                await self._lockstep(number, session)
            self.positions[number] = (await session.info()).position
            self.dumps[number] = await session.dump()

    async def _lockstep(self, number: int, session: AsyncSession) -> None:
        chance = np.random.default_rng(1_000_000 + number)
        async for chunk in self._chunks(number):
            resets = chance.random() < RESET_CHANCE
            if resets:
                self.resets.add((session.position, number))
                if chance.random() < 0.5:
                    await session.reset()
                    resets = False
            self._take(number, await session.step(chunk, reset_experience=resets))

    def _take(self, number: int, outputs: Float32) -> None:
        self.outputs[number].append(outputs)
        self._answered.set()

    async def _chunks(self, number: int) -> AsyncIterator[Float32]:
        chance = np.random.default_rng(number)
        sent = 0
        while self._target is None or sent < self._target:
            length = int(chance.integers(1, LONGEST_CHUNK + 1))
            if self._target is not None:
                length = min(length, self._target - sent)
            chunk = random_inputs(chance, length)
            self.inputs[number].append(chunk)
            sent += length
            yield chunk
            if self._target is None:
                await asyncio.sleep(self._pause_s * 2 * chance.random())

    def tally(self, runner: ModelRunner) -> Tally:
        """Compares with an uninterrupted run of the same inputs: outputs, positions, and what is in memory."""
        inputs = np.stack([np.concatenate(chunks) for chunks in self.inputs], axis=1)  # [T, B, I]
        expected, truth = self._uninterrupted(runner, inputs)
        tally = Tally()
        for number, chunks in enumerate(self.outputs):
            sent, outputs = len(inputs), np.concatenate(chunks)
            applied = self.positions[number]
            tally.timesteps += sent
            tally.lost += max(0, sent - min(applied, len(outputs)))
            tally.doubled += max(0, max(applied, len(outputs)) - sent)
            common = min(sent, len(outputs))
            same = outputs[:common].view(np.uint32) == expected[:common, number].view(np.uint32)
            tally.differing += int((~same.all(axis=1)).sum())
            memory = runner.layout.dump(truth.states[number])
            tally.differing += any(
                memory[name].tobytes() != array.tobytes() for name, array in self.dumps[number].items()
            )
        return tally

    def _uninterrupted(self, runner: ModelRunner, inputs: Float32) -> tuple[Float32, Truth]:
        truth = Truth(runner, inputs.shape[1])
        ends = sorted({position for position, _ in self.resets} | {0, len(inputs)})
        parts = []
        for start, end in pairwise(ends):
            for position, session in self.resets:
                if position == start:
                    truth.reset(session)
            parts.append(truth.step(inputs[start:end]))
        return np.concatenate(parts), truth
