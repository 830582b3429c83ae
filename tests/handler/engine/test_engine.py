"""The engine against the plain truth: the model stepped alone, in process."""

import asyncio
import math
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine import engine as engine_module
from dnc_serve.handler.engine.batch_scheduler import Batch
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.requests import Applied, Chunk, Delete, Inspect, Reset
from dnc_serve.handler.engine.session import Tier
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.artifact import Artifact
from tests.handler.harness import random_inputs, running_engine
from tests.waiting import PATIENCE_S

DURABILITIES = ["off", "async", "sync"]


def config(tmp_path: Path, **settings: object) -> ServeConfig:
    return ServeConfig(state_dir=tmp_path, **settings)  # type: ignore[arg-type]


class Alone:
    """What a session is, without a server: a state and the model, alone."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._rows = StateRows(1, runner.layout, runner.device)

    @property
    def state(self) -> Tensor:
        """[1, S]."""
        return self._rows.states

    def step(self, inputs: Float32) -> Float32:
        outputs, _ = self._runner.step(self._rows, [0], [0], [inputs])
        return outputs[0]

    def reset(self, scope: str) -> None:
        self._rows.reset(0, scope)


@pytest.mark.parametrize(
    ("durability", "long_s"),
    [("off", 0.0), ("async", math.inf), ("sync", 0.0)],
    ids=["off, in a thread", "async, in the loop", "sync, in a thread"],
)
async def test_64_interleaved_sessions_give_the_bits_of_each_alone(
    tiles: TileRunner,
    artifact: Artifact,
    tmp_path: Path,
    durability: str,
    long_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "LONG_S", long_s)
    timesteps = 40
    async with running_engine(tiles, artifact, config(tmp_path, durability=durability, slots=16)) as harness:

        async def drive(number: int) -> Float32:
            session = await harness.create(f"s{number}")
            inputs, position, outputs = random_inputs(number, timesteps), 0, []
            lengths = random.Random(number)
            while position < timesteps:
                chunk = inputs[position : position + lengths.randint(1, 9)]
                applied = await harness.step(session, chunk, position=position)
                position = applied.position
                outputs.append(applied.outputs)
            return np.concatenate(outputs)

        served = await asyncio.gather(*(drive(number) for number in range(64)))
    for number, outputs in enumerate(served):
        assert outputs.tobytes() == Alone(tiles).step(random_inputs(number, timesteps)).tobytes(), number


async def test_a_short_chunk_is_answered_while_a_long_one_is_stepped(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "LONG_S", 10 * tiles.seconds(1))
    go_on = threading.Event()
    async with running_engine(tiles, artifact, config(tmp_path, step_threads=1)) as harness:
        step = harness.engine._executor.step

        def held_up(batch: Batch) -> None:
            if threading.current_thread() is not threading.main_thread():
                assert go_on.wait(PATIENCE_S)
            step(batch)

        monkeypatch.setattr(harness.engine._executor, "step", held_up)
        first, second = await harness.create("first"), await harness.create("second")
        long = asyncio.create_task(harness.step(first, random_inputs(1, 100)))
        await asyncio.sleep(0)
        assert (await harness.step(second, random_inputs(2, 1))).position == 1
        assert not long.done()
        go_on.set()
        assert (await long).outputs.tobytes() == Alone(tiles).step(random_inputs(1, 100)).tobytes()


@pytest.mark.parametrize("every_timesteps", [7, 1000], ids=["from snapshots", "from the beginning"])
@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_a_crash_can_not_be_told_from_the_bits(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, durability: str, every_timesteps: int
) -> None:
    settings = config(tmp_path, durability=durability, snapshot_every_timesteps=every_timesteps)
    truth = Alone(tiles)
    for run in range(6):
        async with running_engine(tiles, artifact, settings) as harness:
            session = harness.engine.table.find("s") or await harness.create("s")
            assert session.position == run * 12
            for part in range(4):
                if part == run % 5:
                    scope = "all" if run % 4 == 3 else "experience"
                    await harness.do(session, lambda done, scope=scope: Reset(scope, done))
                    truth.reset(scope)
                inputs = random_inputs(run * 4 + part, 3)
                applied = await harness.step(session, inputs, position=session.position)
                assert applied.outputs.tobytes() == truth.step(inputs).tobytes()


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_chunk_is_applied_once_however_often_it_comes(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, durability: str
) -> None:
    inputs = random_inputs(1, 5)
    async with running_engine(tiles, artifact, config(tmp_path, durability=durability)) as harness:
        session = await harness.create("s")
        first = await harness.step(session, inputs, position=0)
        again = await harness.step(session, inputs, position=0)
        assert again.replayed and not first.replayed
        assert again.outputs.tobytes() == first.outputs.tobytes()
        assert (again.position, session.position) == (5, 5)


async def test_a_reply_that_left_memory_comes_from_the_journal(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path, reply_window_chunks=2, snapshot_every_timesteps=8)
    chunks = [random_inputs(seed, 3) for seed in range(10)]
    async with running_engine(tiles, artifact, settings) as harness:
        session = await harness.create("s")
        outputs = [(await harness.step(session, chunk)).outputs for chunk in chunks]
    async with running_engine(tiles, artifact, settings) as harness:
        session = harness.engine.table.find("s")
        assert session is not None
        for number, chunk in enumerate(chunks):
            again = await harness.step(session, chunk, position=3 * number)
            assert again.replayed
            assert again.outputs.tobytes() == outputs[number].tobytes()
        with pytest.raises(ServeError, match="another chunk") as caught:
            await harness.step(session, chunks[1], position=0)
        assert caught.value.reason == "STEP_CONFLICT"


async def test_a_reply_that_left_memory_is_gone_without_a_journal(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path, durability="off", reply_window_chunks=1)
    async with running_engine(tiles, artifact, settings) as harness:
        session = await harness.create("s")
        for seed in range(3):
            await harness.step(session, random_inputs(seed, 2))
        with pytest.raises(ServeError) as caught:
            await harness.step(session, random_inputs(0, 2), position=0)
        assert caught.value.reason == "REPLY_GONE"


@pytest.mark.parametrize("durability", ["off", "async"])
async def test_many_more_sessions_than_memory_holds_stay_right_to_the_bit(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, durability: str
) -> None:
    row_bytes = tiles.layout.size * 4
    settings = config(tmp_path, durability=durability, slots=4, host_bytes=10 * row_bytes)
    async with running_engine(tiles, artifact, settings) as harness:
        sessions = [await harness.create(f"s{number}") for number in range(60)]
        truths = [Alone(tiles) for _ in sessions]
        for round_number in range(3):
            inputs = [random_inputs(100 * round_number + number, 3) for number in range(60)]
            applied = await asyncio.gather(
                *(harness.step(session, chunk) for session, chunk in zip(sessions, inputs, strict=True))
            )
            for truth, chunk, result in zip(truths, inputs, applied, strict=True):
                assert result.outputs.tobytes() == truth.step(chunk).tobytes()
        cache = harness.engine.cache
        assert cache.slots_used <= 4
        assert cache.host_used <= 10
        assert sum(session.tier is Tier.STORE for session in sessions) >= 60 - 14


async def test_a_session_goes_back_in_time_as_far_as_the_journal_reaches(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path, snapshot_every_timesteps=10)
    async with running_engine(tiles, artifact, settings) as harness:
        session = await harness.create("s")
        truth, states = Alone(tiles), {0: np.zeros(tiles.layout.size, np.float32)}
        for seed in range(9):
            inputs = random_inputs(seed, 5)
            for row in range(5):
                truth.step(inputs[row : row + 1])
                states[5 * seed + row + 1] = truth.state[0].numpy().copy()
            await harness.step(session, inputs)
        for position in (0, 1, 4, 5, 10, 13, 44, 45):
            seen = await harness.engine.view_at(session, position)
            assert seen.head.position == position
            assert seen.state is not None
            assert seen.state.tobytes() == states[position].tobytes(), position
        assert session.position == 45
        with pytest.raises(ServeError) as caught:
            await harness.engine.view_at(session, 46)
        assert caught.value.reason == "STEP_GAP"


async def test_a_result_that_is_not_finite_changes_nothing(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    bad = np.zeros(tiles.layout.size, np.float32)
    bad[tiles.layout.experience_offset] = np.inf
    async with running_engine(tiles, artifact, config(tmp_path)) as harness:
        good, broken = await harness.create("good"), await harness.create("broken", bad)
        inputs = random_inputs(0, 4)
        results = await asyncio.gather(harness.step(good, inputs), harness.step(broken, inputs), return_exceptions=True)
        assert isinstance(results[1], ServeError)
        assert results[1].reason == "NON_FINITE_RESULT"
        assert broken.position == 0
        assert harness.engine.cache.read(broken).tobytes() == bad.tobytes()
        assert not isinstance(results[0], BaseException)
        assert results[0].outputs.tobytes() == Alone(tiles).step(inputs).tobytes()


async def test_what_nobody_waits_for_any_more_is_not_applied(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    async with running_engine(tiles, artifact, config(tmp_path)) as harness:
        session = await harness.create("s")
        with pytest.raises(ServeError) as caught:
            await harness.step(session, random_inputs(0, 3), deadline=0.0)
        assert caught.value.reason == "DEADLINE_EXCEEDED"
        errors: list[ServeError | None] = []
        chunk = Chunk(random_inputs(0, 500), lambda result, error: errors.append(error))
        harness.engine.submit(session, chunk)
        await asyncio.sleep(0)
        chunk.cancelled = True
        seen = await harness.do(session, lambda done: Inspect(done, with_state=False))
        assert errors[0] is not None and errors[0].reason == "CANCELLED"
        assert seen.head.position == 0


async def test_a_full_queue_refuses_and_recovers(tiles: TileRunner, artifact: Artifact, tmp_path: Path) -> None:
    async with running_engine(tiles, artifact, config(tmp_path, max_queued_chunks=3)) as harness:
        session = await harness.create("s")
        steps = [asyncio.create_task(harness.step(session, random_inputs(0, 2))) for _ in range(3 + 2)]
        results = await asyncio.gather(*steps, return_exceptions=True)
        refused = [result for result in results if isinstance(result, ServeError)]
        assert [error.reason for error in refused] == ["QUEUE_FULL"] * 2
        assert refused[0].retry_after_s
        assert (await harness.step(session, random_inputs(0, 2))).position == 2 * (3 + 1)


async def test_a_deleted_session_refuses_what_waited_behind(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    async with running_engine(tiles, artifact, config(tmp_path)) as harness:
        session = await harness.create("s")
        results = await asyncio.gather(
            harness.step(session, random_inputs(0, 2)),
            harness.do(session, Delete),
            harness.step(session, random_inputs(0, 2)),
            return_exceptions=True,
        )
        assert not isinstance(results[0], BaseException)
        assert isinstance(results[2], ServeError)
        assert results[2].reason == "SESSION_NOT_FOUND"
        assert harness.engine.cache.slots_used == 0


async def test_debug_gives_what_each_access_left(tiles: TileRunner, artifact: Artifact, tmp_path: Path) -> None:
    async with running_engine(tiles, artifact, config(tmp_path)) as harness:
        session = await harness.create("s")
        await harness.step(session, random_inputs(0, 4))
        applied = await harness.step(session, random_inputs(1, 3), debug=True, reset_experience=True)
        assert applied.debug is not None
        seen = await harness.do(session, Inspect)
        dump = tiles.layout.dump(seen.state)
        layers, timesteps = artifact.config.num_layers, 3
        for name, rows in applied.debug.items():
            assert rows.shape[0] == layers * timesteps
            # The last access of the last timestep left what the session now holds.
            assert np.allclose(rows[-1], dump[name][-1].ravel(), atol=1e-6), name


async def test_debug_holds_up_nobody_else(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes, and however many ask for it: more than there are rows for."""
    goes_on, debug = threading.Event(), tiles.debug

    def held_up(inputs: Array, state: Float32) -> dict[str, Array]:
        assert goes_on.wait(PATIENCE_S)
        return debug(inputs, state)

    monkeypatch.setattr(tiles, "debug", held_up)
    async with running_engine(tiles, artifact, config(tmp_path, slots=8)) as harness:
        asking = [await harness.create(f"a{number}") for number in range(harness.engine.max_runs + 3)]
        debugs = [asyncio.ensure_future(harness.step(one, random_inputs(0, 3), debug=True)) for one in asking]
        other = await harness.create("other")
        try:
            for timesteps in (1, 2000):  # in the loop, and in a thread
                assert (await harness.step(other, random_inputs(0, timesteps))).position
            assert not any(one.done() for one in debugs)
        finally:
            goes_on.set()
        answered = await asyncio.gather(*debugs)
        assert all(one.position == 3 and one.debug for one in answered)
        assert harness.engine.at_rest


async def test_what_came_in_one_turn_of_the_loop_is_stepped_together_in_the_next(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is waited for: neither by one chunk, nor by several."""
    monkeypatch.setattr(engine_module, "LONG_S", math.inf)
    async with running_engine(tiles, artifact, config(tmp_path)) as harness:
        sessions = [await harness.create(f"s{number}") for number in range(5)]
        step, batches = harness.engine._executor.step, list[int]()

        def counted(batch: Batch) -> None:
            batches.append(len(batch.runs))
            step(batch)

        monkeypatch.setattr(harness.engine._executor, "step", counted)
        for company in (1, 5):
            answered: list[Applied] = []
            for session in sessions[:company]:
                harness.engine.submit(session, Chunk(random_inputs(0, 1), lambda one, error: answered.append(one)))  # noqa: B023
            assert not answered
            await asyncio.sleep(0)
            assert len(answered) == company
        assert batches == [1, 5]
