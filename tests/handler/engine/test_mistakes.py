"""A mistake of our own costs the one piece of work that it was made in, and nobody else anything."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.tiles import Tiles
from dnc_serve.handler.engine.work import Chunk, Done, Reset, Work
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.journal.stores.contract import End
from dnc_serve.model.export import Artifact
from tests.handler.harness import EngineHarness, random_inputs, running_engine

# Work that no door lets through.
MISTAKES: dict[str, Callable[[Done], Work]] = {
    "a chunk of no position": lambda done: Chunk(random_inputs(0, 1), done, position="here"),  # type: ignore[arg-type]
    "a reset of no position": lambda done: Reset("experience", done, position="here"),  # type: ignore[arg-type]
    "work of no kind": lambda done: Work(done),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("durability", ["off", "async", "sync"])
async def test_work_that_can_not_be_begun_is_answered_and_holds_up_nobody(
    tiles: Tiles, artifact: Artifact, tmp_path: Path, mistake: str, durability: str
) -> None:
    async with running_engine(tiles, artifact, ServeConfig(state_dir=tmp_path, durability=durability)) as harness:
        sessions = [await harness.create(name) for name in ("before", "mistaken", "after")]
        first = [asyncio.ensure_future(harness.step(sessions[0], random_inputs(0, 4)))]
        await asyncio.sleep(0)
        mistaken = asyncio.ensure_future(harness.do(sessions[1], MISTAKES[mistake]))
        await asyncio.sleep(0)
        steps = [asyncio.ensure_future(harness.step(session, random_inputs(0, 4))) for session in sessions[1:]]
        with pytest.raises(ServeError) as refused:
            await asyncio.wait_for(mistaken, 5)
        assert refused.value.reason == "INTERNAL"
        assert [(await asyncio.wait_for(step, 5)).position for step in first + steps] == [4, 4, 4]
        assert harness.engine.at_rest


async def test_an_answer_that_nobody_can_take_holds_up_nobody(tiles: Tiles, artifact: Artifact, tmp_path: Path) -> None:
    async with running_engine(tiles, artifact, ServeConfig(state_dir=tmp_path)) as harness:
        deaf, other = await harness.create("deaf"), await harness.create("other")

        def take(result: Any, error: ServeError | None) -> None:
            raise ValueError("what is this?")

        harness.engine.submit(deaf, Chunk(random_inputs(0, 4), take))
        harness.engine.submit(deaf, Chunk(random_inputs(0, 4), take, position=9))
        assert (await asyncio.wait_for(harness.step(other, random_inputs(0, 4)), 5)).position == 4
        assert (await asyncio.wait_for(harness.step(deaf, random_inputs(0, 4)), 5)).position == 8
        assert harness.engine.at_rest


@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_what_the_store_refused_is_never_called_durable(
    tiles: Tiles, artifact: Artifact, tmp_path: Path, durability: str
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
    session = await harness.create(f"synced-{len(harness.engine.registry)}")
    await harness.step(session, random_inputs(0, 1))
    while session.durable_position < 1:
        await asyncio.sleep(0.001)
