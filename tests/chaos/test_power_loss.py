"""Power lost at random moments: a living client sees nothing of it, and others are told where they stand.

The first time, syncs are held up before, so that something is lost for certain where replies don't wait for them.
"""

import asyncio
import random
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from dnc_serve.client import AsyncClient, StepGap, Unavailable
from dnc_serve.client.errors import translated
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from tests.chaos.traffic import Traffic
from tests.chaos.truth import Truth, random_inputs
from tests.handler.door import TIMEOUT, chunk
from tests.power import powered
from tests.waiting import until

SESSIONS = 16
PAUSE_S = 0.03
CHUNK = 4
LOSSES = 60
SYNC_INTERVAL_MS = {"async": 200, "sync": 5}

pytestmark = pytest.mark.usefixtures("history")


def durabilities(*in_short: str) -> pytest.MarkDecorator:
    """These with a single loss, and in the long run both with many."""
    many = [pytest.param(name, LOSSES, marks=pytest.mark.long) for name in SYNC_INTERVAL_MS]
    return pytest.mark.parametrize(("durability", "losses"), [*((name, 1) for name in in_short), *many])


def settings(durability: str) -> dict[str, object]:
    return {
        "durability": durability,
        "sync_interval_ms": SYNC_INTERVAL_MS[durability],
        "snapshot_every_timesteps": 50,
    }


@durabilities("async")
async def test_a_power_loss_is_invisible_to_living_clients(
    artifact_folder: Path, runner: ModelRunner, tmp_path: Path, losses: int, durability: str
) -> None:
    chance = random.Random(durability)
    lost_frames = 0
    async with (
        powered(artifact_folder, tmp_path / "state", **settings(durability)) as server,
        AsyncClient(server.address, timeout_s=600) as client,
    ):
        traffic = Traffic(client, SESSIONS, PAUSE_S)
        try:
            for loss in range(losses):
                await traffic.progress()
                if loss == 0 and durability == "async":
                    server.hold_syncs()
                    await traffic.all_progress()
                else:
                    await asyncio.sleep(chance.uniform(0.0, 1.0))
                lost_frames += await asyncio.to_thread(server.lose_power, chance)
                await asyncio.to_thread(server.start)
            await traffic.progress()
            await traffic.finish()
        finally:
            traffic.abandon()
    tally = traffic.tally(runner)
    print(f"{durability}: {losses} power losses took {lost_frames} frames of the log: {tally}")
    assert tally.clean, tally
    assert lost_frames or durability == "sync"


@durabilities("async")
async def test_sessions_made_right_before_a_power_loss_go_on_for_the_clients_that_made_them(
    artifact_folder: Path, runner: ModelRunner, tmp_path: Path, losses: int, durability: str
) -> None:
    chance = random.Random(durability)
    made_again = 0
    async with (
        powered(artifact_folder, tmp_path / "state", **settings(durability)) as server,
        AsyncClient(server.address, timeout_s=600) as client,
    ):
        for loss in range(losses):
            if loss == 0 and durability == "async":
                server.hold_syncs()
            traffic = Traffic(client, SESSIONS, PAUSE_S, prefix=f"{loss}-")
            try:
                await traffic.all_progress()
                before = {info.id: info.incarnation async for info in client.sessions(f"{loss}-")}
                await asyncio.to_thread(server.lose_power, chance)
                await asyncio.to_thread(server.start)
                await traffic.progress()
                await traffic.finish()
            finally:
                traffic.abandon()
            after = {info.id: info.incarnation async for info in client.sessions(f"{loss}-")}
            again = sum(after[session_id] != incarnation for session_id, incarnation in before.items())
            if loss == 0:
                assert again == (SESSIONS if durability == "async" else 0)
            made_again += again
            tally = traffic.tally(runner)
            assert tally.clean, tally
    print(f"{durability}: of {losses * SESSIONS} sessions, {made_again} were made again after {losses} power losses")
    assert durability == "async" or not made_again


class Witness:
    """Steps a session alone until the server is gone, and notes what it was told."""

    def __init__(self, number: int, runner: ModelRunner) -> None:
        self.id = f"w{number}"
        self.truth = Truth(runner)
        self.inputs = random_inputs(np.random.default_rng(number), 60_000)
        self.position = self.answered = self.durable = self.sent = 0

    async def step(self, address: str) -> None:
        async with AsyncClient(address, retry=None, timeout_s=600) as client:
            try:
                async with client.session(self.id) as session:
                    assert session.position == self.position
                    while True:
                        inputs = self.inputs[session.position : session.position + CHUNK]
                        self.sent = session.position + len(inputs)
                        await session.step(inputs)
                        self.answered = session.position
                        self.durable = max(self.durable, session.durable_position)
                        await asyncio.sleep(PAUSE_S / 2)
            except Unavailable:
                return


@durabilities("async", "sync")
async def test_whoever_comes_next_is_told_the_position(
    artifact_folder: Path, runner: ModelRunner, tmp_path: Path, losses: int, durability: str
) -> None:
    chance = random.Random(durability)
    witnesses = [Witness(number, runner) for number in range(SESSIONS)]
    behind = 0
    async with powered(artifact_folder, tmp_path / "state", **settings(durability)) as server:
        for loss in range(losses):
            steps = [asyncio.create_task(witness.step(server.address)) for witness in witnesses]
            await until(lambda: all(one.durable > one.position for one in witnesses), "something of each is synced")
            if loss == 0 and durability == "async":
                server.hold_syncs()
                since = [one.answered for one in witnesses]
                # The first answer may be to what was sent before.
                await until(
                    lambda since=since: all(
                        one.answered > count + CHUNK for one, count in zip(witnesses, since, strict=True)
                    ),
                    "something of each is answered that is not synced",
                )
            else:
                await asyncio.sleep(chance.uniform(0.0, 1.0))
            await asyncio.to_thread(server.lose_power, chance)
            await asyncio.gather(*steps)
            await asyncio.to_thread(server.start)
            async with AsyncClient(server.address) as client:
                for witness in witnesses:
                    session = await client.session(witness.id)
                    assert witness.durable <= session.position <= witness.sent
                    if durability == "sync":
                        assert session.position >= witness.answered
                    elif loss == 0:
                        assert session.position < witness.answered
                    behind += max(0, witness.answered - session.position)
                    await ask_to_go_on(server.address, witness, session.position)
                    witness.position = session.position
        async with AsyncClient(server.address) as client:
            for witness in witnesses:
                expected = witness.truth.step(witness.inputs[: witness.position + 10, None])[:, 0]
                async with client.session(witness.id) as session:
                    outputs = await session.step(witness.inputs[witness.position : witness.position + 10])
                assert outputs.tobytes() == expected[witness.position :].tobytes()
    print(f"{durability}: {losses} power losses took {behind} answered timesteps of {SESSIONS} sessions back")


async def ask_to_go_on(address: str, witness: Witness, position: int) -> None:
    """Whoever believes to be further on than the session is refused, with the position to go on from."""
    ahead = chunk(witness.id, witness.inputs[:1], position=position + 1)
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(StepGap) as caught, translated():
            await dnc_pb2_grpc.DncServiceStub(channel).Step(pb.StepRequest(chunk=ahead), timeout=TIMEOUT)
    assert caught.value.metadata["expected_position"] == str(position)
