"""Sessions that move down and up: what the store refuses, what it can't take now, and what is left behind there."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine import state_cache
from dnc_serve.handler.engine.requests import Inspect
from dnc_serve.handler.engine.session import Session, Status, Tier
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.handler.errors import ServeError, StoreUnavailable
from dnc_serve.handler.store.contract import End
from dnc_serve.model.artifact import Artifact
from tests.handler.harness import EngineHarness, random_inputs, running_engine

SLOTS, HOST_ROWS = 2, 8


def config(tmp_path: Path, tiles: TileRunner, **settings: object) -> ServeConfig:
    limits = {"slots": SLOTS, "host_bytes": HOST_ROWS * tiles.layout.size * 4} | settings
    return ServeConfig(state_dir=tmp_path, **limits)  # type: ignore[arg-type]


async def grown(harness: EngineHarness, names: str) -> list[Session]:
    sessions = []
    for seed, name in enumerate(names):
        sessions.append(await harness.create(name))
        await harness.step(sessions[-1], random_inputs(seed, 3))
    return sessions


async def settled(harness: EngineHarness) -> None:
    """Returns when no write is under way."""
    await harness.engine.journal.flush()
    await asyncio.sleep(0)


@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_one_that_the_store_refuses_keeps_no_other_in_memory(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, durability: str
) -> None:
    async with running_engine(tiles, artifact, config(tmp_path, tiles, durability=durability)) as harness:
        store = harness.engine.journal.store
        refused, *others = await grown(harness, "abcdefghij")  # slots and host memory are full
        await settled(harness)
        store.commit([End(refused.session_id, refused.incarnation, "deleted", time.time())])
        newer = await grown(harness, "klmnopqrst")
        await settled(harness)
        assert refused.tier is Tier.HOST
        assert all(session.tier is Tier.STORE for session in others[:6])
        assert harness.engine.cache.host_used <= HOST_ROWS
        assert all(session.status is Status.IDLE for session in (refused, *others, *newer))
        for session in others:
            assert (await harness.step(session, random_inputs(0, 1))).position == 4


@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_a_store_that_is_down_is_not_offered_states_with_every_move(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    async with running_engine(tiles, artifact, config(tmp_path, tiles, durability=durability)) as harness:
        cache, store = harness.engine.cache, harness.engine.journal.store
        sessions = await grown(harness, "abcdefghij")
        await settled(harness)
        in_memory = [session for session in sessions if session.tier is not Tier.STORE]
        attempts = 0

        def down(mutations: object) -> None:
            nonlocal attempts
            attempts += 1
            raise StoreUnavailable("down")

        with monkeypatch.context() as broken:
            broken.setattr(store, "commit", down)
            broken.setattr(state_cache, "time", SimpleNamespace(monotonic=lambda: 1.0))  # no time goes by
            cache._max_host = 0  # all of them are to go
            for _ in range(50):
                for session in in_memory:
                    cache.promote(session)  # another one moves down
                await asyncio.sleep(0)
            with suppress(StoreUnavailable):  # if it was written together with the states
                await settled(harness)
            await asyncio.sleep(0)
            assert 1 <= attempts <= 2
            assert [session for session in sessions if session.tier is not Tier.STORE] == in_memory
            assert all(session.status is Status.IDLE for session in sessions)
        monkeypatch.setattr(cache, "_retry_at", 0.0)  # a second later
        cache.shrink()
        await settled(harness)
        assert cache.host_used == 0
        for session in sessions:
            assert (await harness.step(session, random_inputs(0, 1))).position == 4


async def test_moving_down_and_up_again_leaves_no_trail_of_states(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path, tiles, slots=1, host_bytes=tiles.layout.size * 4, snapshot_every_timesteps=10)
    async with running_engine(tiles, artifact, settings) as harness:
        store = harness.engine.journal.store
        sessions = await grown(harness, "abcd")
        for seed in range(36):
            for session in sessions:
                await harness.step(session, random_inputs(seed, 1))
        for session in sessions:
            at = [info.position for info in store.snapshots(session.session_id, session.incarnation)]
            # Those that were due, for looks back; and the newest, with one to fall back to.
            assert len(at) <= 39 // 10 + 2
            assert at[0] >= 38
            assert np.diff([0, *at[::-1]]).max() <= 11
            seen = await harness.engine.view_at(session, 17)
            assert seen.head.position == 17
        truths = [(await harness.do(session, lambda done: Inspect(done))).state for session in sessions]
    async with running_engine(tiles, artifact, settings) as harness:
        for session, truth in zip(sessions, truths, strict=True):
            again = harness.engine.table.get(session.session_id, "")
            assert (await harness.do(again, lambda done: Inspect(done))).state.tobytes() == truth.tobytes()


async def test_no_more_states_are_brought_than_can_be_worked_on(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    async with running_engine(tiles, artifact, config(tmp_path, tiles)) as harness:
        sessions = [await harness.create(f"s{number}") for number in range(100)]
        await asyncio.gather(*(harness.step(session, random_inputs(1, 3)) for session in sessions))
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, harness.engine.cache.host_used)
                await asyncio.sleep(0)

        watching = asyncio.ensure_future(watch())
        applied = await asyncio.gather(
            *(harness.step(session, random_inputs(2, 3)) for session in sessions), return_exceptions=True
        )
        watching.cancel()
        assert not [error for error in applied if isinstance(error, ServeError)]
        assert most <= HOST_ROWS + SLOTS
