"""KServe's client, which sends a call again that ended in UNAVAILABLE."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from bench.peers.setup import cache_folder, kserve_python
from dnc_serve.handler.arrays import Float32
from dnc_serve.proto.targets import DIRECTLY
from tests.clients.conftest import ForeignClient
from tests.clients.sequences import TIMESTEPS, outputs, request
from tests.programs import COMPLETE_VARIABLE
from tests.server_process import ServerProcess

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="session")
def python() -> Path:
    """Its SDK wants other versions than this project, and an environment of its own in the cache of `bench`."""
    if not (cache_folder() / "kserve").is_dir() and not os.environ.get(COMPLETE_VARIABLE):
        pytest.skip("KServe's SDK is not in the cache, where a complete run puts it")
    return kserve_python(cache_folder())


class LosesAnswers(grpc.GenericRpcHandler):
    """Passes calls on; when told so, it loses an answer: what was asked has been done, and the caller doesn't know."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.to_lose = 0
        self.calls = 0

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def forward(message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            answer: bytes = await self._channel.unary_unary(details.method)(message)
            if details.method == INFER:
                self.calls += 1
                if self.to_lose:
                    self.to_lose -= 1
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
            return answer

        return grpc.unary_unary_rpc_method_handler(forward)


@asynccontextmanager
async def losing(address: str) -> AsyncIterator[tuple[str, LosesAnswers]]:
    async with grpc.aio.insecure_channel(address, options=DIRECTLY) as channel:
        handler, proxy = LosesAnswers(channel), grpc.aio.server()
        proxy.add_generic_rpc_handlers((handler,))
        port = proxy.add_insecure_port("127.0.0.1:0")
        await proxy.start()
        try:
            yield f"127.0.0.1:{port}", handler
        finally:
            await proxy.stop(None)


@pytest.fixture
def client(python: Path, server: ServerProcess) -> Iterator[ForeignClient]:
    client = of_kserve(python, server.address)
    yield client
    client.close()


def of_kserve(python: Path, address: str) -> ForeignClient:
    return ForeignClient(str(python), str(Path(__file__).with_name("kserve_client.py")), address, "copy")


@pytest.mark.parametrize("binary", [False, True])
def test_a_sequence_is_a_session(client: ForeignClient, expected: Float32, sequence_id: int, binary: bool) -> None:
    places = [(0, 5), (5, 6), (6, TIMESTEPS)]
    answers = client.ask(*(request(sequence_id, *place, binary=binary) for place in places))
    assert [answer["position"] for answer in answers] == [5, 6, TIMESTEPS]
    assert np.array_equal(outputs(answers), expected)


async def test_a_call_that_it_repeats_is_applied_once(
    python: Path, server: ServerProcess, expected: Float32, sequence_id: int
) -> None:
    async with losing(server.address) as (address, proxy):
        client = await asyncio.to_thread(of_kserve, python, address)
        answers = []
        try:
            for number, place in enumerate([(0, 5), (5, 6), (6, TIMESTEPS)]):
                proxy.to_lose, proxy.calls = 2, 0
                asked = request(sequence_id, *place, id=str(number))
                answers += await asyncio.to_thread(client.ask, asked)
                assert proxy.calls == 3
        finally:
            client.close()
    assert [answer["position"] for answer in answers] == [5, 6, TIMESTEPS]
    assert np.array_equal(outputs(answers), expected)
