"""Power lost at random moments: a living client sees nothing of it, and others are told where they stand."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from dnc_serve.client import AsyncClient, StepGap, Unavailable
from dnc_serve.client.errors import translated
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from tests.chaos.power import lose_power
from tests.chaos.traffic import Traffic
from tests.chaos.truth import Truth, random_inputs
from tests.handler.door import chunk

REPOSITORY = Path(__file__).parents[2]
SESSIONS = 16
PAUSE_S = 0.03
LOSSES_IN_SHORT = 2
SYNC_INTERVAL_S = {"async": 0.2, "sync": 0.005}
# A sync itself takes its time, on a busy machine with a slow disk.
LONGEST_SYNC_S = 3.0


class PoweredServer:
    """A server whose power goes, and comes back: the same port, and what is left in the state folder."""

    def __init__(self, artifact: Path, state_dir: Path, durability: str) -> None:
        self._artifact, self._state_dir = artifact, state_dir
        interval = f"sync_interval_ms={1000 * SYNC_INTERVAL_S[durability]}"
        self._settings = [f"durability={durability}", interval, "snapshot_every_timesteps=50"]
        self._process: subprocess.Popen[str] | None = None
        self.address = "127.0.0.1:0"

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-m", "tests.chaos.serving", str(self._artifact), str(self._state_dir), port]
        self._process = subprocess.Popen([*command, *self._settings], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the server didn't start"

    def lose_power(self, chance: random.Random) -> int:
        """Frames of the log that were lost."""
        self.kill()
        return lose_power(self._state_dir, chance)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@asynccontextmanager
async def powered(artifact: Path, state_dir: Path, durability: str) -> AsyncIterator[PoweredServer]:
    server = PoweredServer(artifact, state_dir, durability)
    try:
        await asyncio.to_thread(server.start)
        yield server
    finally:
        await asyncio.to_thread(server.kill)


@pytest.fixture
def losses(kills: int, thorough: bool) -> int:
    """How often the power is lost."""
    return kills if thorough else LOSSES_IN_SHORT


@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_a_power_loss_is_invisible_to_living_clients(
    artifact_folder: Path, tiles: TileRunner, tmp_path: Path, losses: int, durability: str
) -> None:
    chance = random.Random(durability)
    lost_frames = 0
    async with (
        powered(artifact_folder, tmp_path / "state", durability) as server,
        AsyncClient(server.address, timeout_s=180) as client,
    ):
        traffic = Traffic(client, SESSIONS, PAUSE_S)
        try:
            for _ in range(losses):
                await traffic.progress()
                await asyncio.sleep(chance.uniform(0.1, 1.5))
                lost_frames += await asyncio.to_thread(server.lose_power, chance)
                await asyncio.to_thread(server.start)
            await traffic.progress()
            await traffic.finish()
        finally:
            traffic.abandon()
    tally = traffic.tally(tiles)
    print(f"{durability}: {losses} power losses took {lost_frames} frames of the log: {tally}")
    assert tally.clean, tally
    assert lost_frames or durability == "sync", "nothing was lost: this proves nothing"


@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_sessions_made_right_before_a_power_loss_go_on_for_the_clients_that_made_them(
    artifact_folder: Path, tiles: TileRunner, tmp_path: Path, losses: int, durability: str
) -> None:
    chance = random.Random(durability)
    made_again = 0
    async with (
        powered(artifact_folder, tmp_path / "state", durability) as server,
        AsyncClient(server.address, timeout_s=180) as client,
    ):
        for loss in range(losses):
            traffic = Traffic(client, SESSIONS, PAUSE_S, prefix=f"{loss}-")
            try:
                await traffic.progress()
                await asyncio.sleep(chance.uniform(0.0, 0.1))
                before = {info.id: info.incarnation async for info in client.sessions(f"{loss}-")}
                await asyncio.to_thread(server.lose_power, chance)
                await asyncio.to_thread(server.start)
                await traffic.progress()
                await traffic.finish()
            finally:
                traffic.abandon()
            after = {info.id: info.incarnation async for info in client.sessions(f"{loss}-")}
            made_again += sum(after[session_id] != incarnation for session_id, incarnation in before.items())
            tally = traffic.tally(tiles)
            assert tally.clean, tally
    print(f"{durability}: of {losses * SESSIONS} sessions, {made_again} were made again after {losses} power losses")
    assert (made_again > 0) == (durability == "async")


class Witness:
    """Steps a session alone until the server is gone, and notes when it was told what."""

    def __init__(self, number: int, tiles: TileRunner) -> None:
        self.id = f"w{number}"
        self.truth = Truth(tiles)
        self.inputs = random_inputs(np.random.default_rng(number), 60_000)
        self.told: list[tuple[float, int]] = [(0.0, 0)]  # when, and the position that was answered
        self.durable = 0
        self.sent = 0

    async def step(self, address: str, position: int) -> None:
        async with AsyncClient(address, retry=None, timeout_s=30) as client:
            try:
                async with client.session(self.id) as session:
                    assert session.position == position
                    while True:
                        inputs = self.inputs[session.position : session.position + 4]
                        self.sent = session.position + len(inputs)
                        await session.step(inputs)
                        self.told.append((time.monotonic(), session.position))
                        self.durable = max(self.durable, session.durable_position)
                        await asyncio.sleep(PAUSE_S / 2)
            except Unavailable:
                return

    def answered_before(self, moment: float) -> int:
        return max(position for at, position in self.told if at < moment)


@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_whoever_comes_next_is_told_the_position(
    artifact_folder: Path, tiles: TileRunner, tmp_path: Path, losses: int, durability: str
) -> None:
    chance = random.Random(durability)
    witnesses = [Witness(number, tiles) for number in range(SESSIONS)]
    positions, behind = [0] * SESSIONS, 0
    async with powered(artifact_folder, tmp_path / "state", durability) as server:
        for _ in range(losses):
            steps = [
                asyncio.create_task(witness.step(server.address, position))
                for witness, position in zip(witnesses, positions, strict=True)
            ]
            await asyncio.sleep(chance.uniform(0.5, 2.0))
            lost_at = time.monotonic()
            await asyncio.to_thread(server.lose_power, chance)
            await asyncio.gather(*steps)
            await asyncio.to_thread(server.start)
            async with AsyncClient(server.address) as client:
                for number, witness in enumerate(witnesses):
                    session = await client.session(witness.id)
                    answered = witness.answered_before(np.inf)
                    assert witness.durable <= session.position <= witness.sent
                    if durability == "sync":
                        assert session.position >= answered
                    safe_until = lost_at - SYNC_INTERVAL_S[durability] - LONGEST_SYNC_S
                    assert session.position >= witness.answered_before(safe_until)
                    behind += answered - min(answered, session.position)
                    await ask_to_go_on(server.address, witness, session.position)
                    positions[number] = session.position
                    witness.told = [(0.0, session.position)]
        async with AsyncClient(server.address) as client:
            for witness, position in zip(witnesses, positions, strict=True):
                expected = witness.truth.step(witness.inputs[: position + 10, None])[:, 0]
                async with client.session(witness.id) as session:
                    outputs = await session.step(witness.inputs[position : position + 10])
                assert outputs.tobytes() == expected[position:].tobytes()
    print(f"{durability}: {losses} power losses took {behind} answered timesteps of {SESSIONS} sessions back")
    assert behind == 0 or durability == "async"


async def ask_to_go_on(address: str, witness: Witness, position: int) -> None:
    """Whoever believes to be further on than the session is refused, with the position to go on from."""
    ahead = chunk(witness.id, witness.inputs[:1], position=position + 1)
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(StepGap) as caught, translated():
            await dnc_pb2_grpc.DncServiceStub(channel).Step(pb.StepRequest(chunk=ahead), timeout=30)
    assert caught.value.metadata["expected_position"] == str(position)
