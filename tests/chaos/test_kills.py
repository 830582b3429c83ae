"""kill -9 at random moments, of the real thing: no client can tell, by a single bit, that it happened."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from dnc_serve.client import AsyncClient
from dnc_serve.handler.engine.model_runner import ModelRunner
from tests.chaos.traffic import Traffic
from tests.chaos.tree import Tree, Victim

SESSIONS, SESSIONS_IN_SHORT = 32, 8
KILLS = 40
PAUSE_S = 0.1  # between two chunks of a session, on average
CALL_TIMEOUT_S = 900.0
LOOK_AGAIN_S = 1.0

pytestmark = pytest.mark.usefixtures("history")


@pytest.mark.parametrize(
    ("durability", "runtime", "kills", "sessions"),
    [
        ("async", "torchserve", 3, SESSIONS_IN_SHORT),
        ("async", "plain", 2, SESSIONS_IN_SHORT),
        *(
            pytest.param(durability, runtime, KILLS, SESSIONS, marks=pytest.mark.long)
            for durability, runtime in (("sync", "torchserve"), ("async", "torchserve"), ("async", "plain"))
        ),
    ],
)
async def test_killed_at_random_moments_under_many_streams(
    artifact_folder: Path, runner: ModelRunner, tmp_path: Path, durability: str, runtime: str, kills: int, sessions: int
) -> None:
    flags = ("--runtime", runtime, "--durability", durability, "--snapshot-every-timesteps", "100")
    tree = Tree(artifact_folder, tmp_path, *flags)
    chance = random.Random(durability)
    killed: Counter[Victim] = Counter()
    try:
        await asyncio.to_thread(tree.start)
        async with AsyncClient(tree.addresses["grpc"], timeout_s=CALL_TIMEOUT_S) as client:
            traffic = Traffic(client, sessions, PAUSE_S)
            try:
                for number in range(kills):
                    await _progress(traffic, tree)
                    await asyncio.sleep(chance.uniform(0.0, 1.0))
                    every_kind = number < len(tree.victims)
                    victim = tree.victims[number] if every_kind else chance.choice(tree.victims)
                    await asyncio.to_thread(tree.kill, victim, chance)
                    killed[victim] += 1
                await _progress(traffic, tree)
                await traffic.finish()
            finally:
                traffic.abandon()
    finally:
        await asyncio.to_thread(tree.kill_all)
    tally = traffic.tally(runner)
    print(f"{durability}: {dict(killed)} killed under {sessions} sessions: {tally}")
    assert tally.clean, tally


async def _progress(traffic: Traffic, tree: Tree) -> None:
    """Returns when somebody has been answered; as long as nobody is, a server that gave up is started again."""
    progress = asyncio.create_task(traffic.progress())
    while not (await asyncio.wait([progress], timeout=LOOK_AGAIN_S))[0]:
        await asyncio.to_thread(tree.start_if_ended)
    progress.result()
