"""Exactly once over a network that delays, repeats, and cuts connections in the midst of messages."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.client import AsyncClient, Client, Retry
from dnc_serve.client.arrays import Float32
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.chaos.relay import Trouble, relay_to
from tests.chaos.traffic import Traffic
from tests.chaos.truth import Truth, random_inputs
from tests.handler.door import TIMEOUT, Door, open_door

SESSIONS = 8
QUICK = Retry(first_wait_s=0.01, longest_wait_s=0.1)
TROUBLES = {
    "slow": {"delay": 0.3},
    "cut": {"cut": 0.02},
    "twice": {"repeat": 0.2},
    "all": {"delay": 0.05, "cut": 0.01, "repeat": 0.1},
}


@pytest.fixture(scope="module")
def door(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(artifact_folder, tmp_path_factory.mktemp("state")) as door:
        yield door


# In the long run each kind by itself too, and of all more.
kinds = pytest.mark.parametrize(
    ("kind", "times"), [("all", 10), *(pytest.param(kind, 400, marks=pytest.mark.long) for kind in TROUBLES)]
)


def came(trouble: Trouble, kind: str, times: int) -> bool:
    """Whether the trouble that was asked for has come so often."""
    return (trouble.cuts >= times or kind not in ("cut", "all")) and (
        trouble.repeated >= times or kind not in ("twice", "all")
    )


@kinds
async def test_async_streams_through_a_bad_network(door: Door, runner: ModelRunner, kind: str, times: int) -> None:
    trouble = Trouble(1, **TROUBLES[kind])
    async with (
        relay_to(door.addresses.grpc, trouble) as relay,
        AsyncClient(relay.address, retry=QUICK, timeout_s=600) as client,
    ):
        traffic = Traffic(client, SESSIONS, pause_s=0.01)
        try:
            for _ in range(times):
                await traffic.progress()
            while not came(trouble, kind, times):
                await traffic.progress()
            trouble.end()
            await traffic.finish()
        finally:
            traffic.abandon()
    tally = traffic.tally(runner)
    print(f"async, {kind}: {trouble.cuts} cuts, {trouble.repeated} messages repeated: {tally}")
    assert tally.clean, tally
    for number in range(SESSIONS):
        door.stub.DeleteSession(pb.DeleteSessionRequest(session_id=f"s{number}"), timeout=TIMEOUT)


@kinds
async def test_streams_of_the_plain_client_through_a_bad_network(
    door: Door, runner: ModelRunner, kind: str, times: int
) -> None:
    trouble = Trouble(2, **TROUBLES[kind])
    inputs = [random_inputs(np.random.default_rng(number), 100 * times) for number in range(SESSIONS)]

    def run(address: str, number: int) -> list[Float32]:
        """Streams all, and again, until the trouble has come."""
        outputs = []
        with Client(address, retry=QUICK, timeout_s=600) as client:
            while not outputs or not came(trouble, kind, times):
                with client.session() as session:
                    chunks = (inputs[number][start : start + 4] for start in range(0, len(inputs[number]), 4))
                    outputs.append(np.concatenate(list(session.stream(chunks))))
                    assert session.position == session.info().position == len(inputs[number])
                    session.delete()
        return outputs

    async with relay_to(door.addresses.grpc, trouble) as relay:
        with ThreadPoolExecutor(SESSIONS) as threads:
            runs = [asyncio.wrap_future(threads.submit(run, relay.address, number)) for number in range(SESSIONS)]
            answered = await asyncio.gather(*runs)
    expected = Truth(runner, SESSIONS).step(np.stack(inputs, axis=1))
    for number, runs_of_one in enumerate(answered):
        for outputs in runs_of_one:
            assert outputs.tobytes() == expected[:, number].tobytes()
    print(f"plain, {kind}: {trouble.cuts} cuts, {trouble.repeated} messages repeated: all equal")
