"""A mistake of our own costs the one piece of work that it was made in, and nobody else anything."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.observer import Observer
from dnc_serve.handler.engine.requests import Applied, Chunk, Delete, Done, Request, Reset
from dnc_serve.handler.engine.session import Session
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.contract import End
from dnc_serve.handler.store.history import Recovered
from dnc_serve.model.artifact import Artifact
from tests.handler.harness import EngineHarness, random_inputs, running_engine
from tests.waiting import PATIENCE_S

# Requests that no endpoint lets through.
MISTAKES: dict[str, Callable[[Done], Request]] = {
    "a chunk of no position": lambda done: Chunk(random_inputs(0, 1), done, position="here"),  # type: ignore[arg-type]
    "a reset of no position": lambda done: Reset("experience", done, position="here"),  # type: ignore[arg-type]
    "a request of no kind": lambda done: Request(done),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("durability", ["off", "async", "sync"])
async def test_a_request_that_can_not_be_begun_is_answered_and_holds_up_nobody(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, mistake: str, durability: str
) -> None:
    async with running_engine(tiles, artifact, ServeConfig(state_dir=tmp_path, durability=durability)) as harness:
        sessions = [await harness.create(name) for name in ("before", "mistaken", "after")]
        first = [asyncio.ensure_future(harness.step(sessions[0], random_inputs(0, 4)))]
        await asyncio.sleep(0)
        mistaken = asyncio.ensure_future(harness.do(sessions[1], MISTAKES[mistake]))
        await asyncio.sleep(0)
        steps = [asyncio.ensure_future(harness.step(session, random_inputs(0, 4))) for session in sessions[1:]]
        with pytest.raises(ServeError) as refused:
            await asyncio.wait_for(mistaken, PATIENCE_S)
        assert refused.value.reason == "INTERNAL"
        assert [(await asyncio.wait_for(step, PATIENCE_S)).position for step in first + steps] == [4, 4, 4]
        assert harness.engine.at_rest


async def test_an_answer_that_nobody_can_take_holds_up_nobody(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    async with running_engine(tiles, artifact, ServeConfig(state_dir=tmp_path)) as harness:
        deaf, other = await harness.create("deaf"), await harness.create("other")

        def take(result: Any, error: ServeError | None) -> None:
            raise ValueError("what is this?")

        harness.engine.submit(deaf, Chunk(random_inputs(0, 4), take))
        harness.engine.submit(deaf, Chunk(random_inputs(0, 4), take, position=9))
        assert (await asyncio.wait_for(harness.step(other, random_inputs(0, 4)), PATIENCE_S)).position == 4
        assert (await asyncio.wait_for(harness.step(deaf, random_inputs(0, 4)), PATIENCE_S)).position == 8
        assert harness.engine.at_rest


class Clumsy(Observer):
    """One that fails at whatever it is told."""

    def __getattribute__(self, name: str) -> Any:
        def fails(*told: object) -> None:
            raise ValueError(f"{name}: what is this?")

        return fails


@pytest.mark.parametrize("durability", ["off", "async", "sync"])
async def test_an_observer_that_fails_holds_up_nobody_and_keeps_nothing_from_the_others(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, durability: str
) -> None:
    settings = ServeConfig(state_dir=tmp_path, durability=durability, snapshot_every_timesteps=8)
    async with running_engine(tiles, artifact, settings) as harness:
        harness.engine.observers._observers.insert(0, Clumsy())
        sessions = [await harness.create(f"s{number}") for number in range(3)]
        for _ in range(2):
            await asyncio.gather(*(harness.step(session, random_inputs(0, 4)) for session in sessions))
        assert [session.position for session in sessions] == [8, 8, 8]
        assert harness.metrics.registry.get_sample_value("dnc_timesteps_total") == 24
        await harness.do(sessions[0], Delete)
        assert harness.engine.at_rest
        if durability != "off":
            await synced(harness)
            assert [session.durable_position for session in sessions[1:]] == [8, 8]
            assert all(harness.engine.journal.store.snapshots(one.session_id, one.incarnation) for one in sessions[1:])


async def test_a_state_that_can_not_be_installed_costs_its_session_alone(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServeConfig(state_dir=tmp_path)
    async with running_engine(tiles, artifact, settings) as harness:
        for name in ("mistaken", "beside"):
            await harness.step(await harness.create(name), random_inputs(0, 4))
    async with running_engine(tiles, artifact, settings) as harness:
        install, mistaken = harness.engine.recovery._install, harness.engine.table.get("mistaken", "")

        def fails(session: Session, recovered: Recovered) -> None:
            if session is mistaken:
                raise ValueError("what is this?")
            install(session, recovered)

        with monkeypatch.context() as broken:
            broken.setattr(harness.engine.recovery, "_install", fails)
            steps = (
                harness.step(harness.engine.table.get(name, ""), random_inputs(0, 4)) for name in ("mistaken", "beside")
            )
            results = await asyncio.gather(*(asyncio.wait_for(step, 5) for step in steps), return_exceptions=True)
        assert isinstance(results[0], ServeError) and results[0].reason == "INTERNAL"
        assert isinstance(results[1], Applied) and results[1].position == 8
        assert (await harness.step(mistaken, random_inputs(0, 4), position=4)).position == 8
        assert harness.engine.at_rest


@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_what_the_store_refused_is_never_called_durable(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, durability: str
) -> None:
    async with running_engine(tiles, artifact, ServeConfig(state_dir=tmp_path, durability=durability)) as harness:
        sessions = [await harness.create(name) for name in ("refused", "written")]
        await asyncio.gather(*(harness.step(session, random_inputs(0, 4)) for session in sessions))
        await synced(harness)
        assert [session.durable_position for session in sessions] == [4, 4]
        # Somebody ends one of them in the store itself.
        harness.engine.journal.store.commit([End("refused", sessions[0].incarnation, "deleted", 0.0)])
        steps = (harness.step(session, random_inputs(1, 4)) for session in sessions)
        results = await asyncio.gather(*steps, return_exceptions=True)
        assert isinstance(results[0], ServeError) and not isinstance(results[1], BaseException)
        await synced(harness)
        assert [session.durable_position for session in sessions] == [4, 8]


async def synced(harness: EngineHarness) -> None:
    """Returns when the thread that syncs has told the loop."""
    session = await harness.create(f"synced-{len(harness.engine.table)}")
    await harness.step(session, random_inputs(0, 1))
    while session.durable_position < 1:
        await asyncio.sleep(0.001)
