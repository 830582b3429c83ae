"""Three servers on one Redis behind Envoy as it is deployed: one is killed, one comes back, one drains, while our own
client and those of Triton send; nothing is lost, doubled, or other."""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc_serve.client import AsyncClient
from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.state_rows import StateRows
from tests.clients.conftest import triton_client
from tests.deploy.proxies import proxy, until_served
from tests.handler.conftest import artifact, kernel_cache, row_runner  # noqa: F401
from tests.handler.harness import random_inputs
from tests.handler.store.conftest import RedisServer, running_redis
from tests.server_process import ServerProcess
from tests.waiting import until

LEASE_S = 2.0
SERVERS, OWN, CHUNK = 3, 6, 4
KINDS = ("sync", "aio", "stream")
PAUSE_S = 0.02  # two cores are shared by all of them
MOVED = re.compile(r"is served by (\S+)")


class Caller:
    """Sends chunks to one session until it is told to stop, and keeps what it was answered."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self._number = number
        self.outputs: list[Float32] = []

    def inputs(self, chunk: int) -> Float32:
        return random_inputs(1000 * self._number + chunk, CHUNK)

    async def run(self, address: str, stop: asyncio.Event) -> None:
        raise NotImplementedError


class Own(Caller):
    """By our client."""

    async def run(self, address: str, stop: asyncio.Event) -> None:
        async with AsyncClient(address, timeout_s=600) as client, client.session(self.name) as session:
            while not stop.is_set():
                self.outputs.append(await session.step(self.inputs(len(self.outputs))))
                await asyncio.sleep(PAUSE_S)


class OfTriton(Caller):
    """By a client of Triton, in a process of its own. It sends again what was not answered, and names the owner, once
    it is told, in the header that proxies lead by."""

    def __init__(self, kind: str, number: int) -> None:
        super().__init__(f"by-{kind}", number)
        self._kind = kind

    async def run(self, address: str, stop: asyncio.Event) -> None:
        client = await asyncio.to_thread(triton_client, self._kind, address)
        headers = {"x-dnc-session": self.name}
        try:
            while not stop.is_set():
                (answer,) = await asyncio.to_thread(client.ask, self._request() | {"headers": headers})
                if "error" not in answer:
                    assert answer["position"] == CHUNK * (len(self.outputs) + 1)
                    self.outputs.append(np.array(answer["outputs"], np.float32))
                else:
                    owner = MOVED.search(answer["error"])
                    headers = {"x-dnc-session": self.name} | ({"x-dnc-owner": owner[1]} if owner else {})
                await asyncio.sleep(PAUSE_S)
        finally:
            client.close()

    def _request(self) -> dict[str, Any]:
        number = len(self.outputs)
        # Unary calls are known again by their ids, those on streams by their positions.
        known = {"parameters": {"position": CHUNK * number}} if self._kind == "stream" else {"id": str(number)}
        return {"sequence_id": self.name, "inputs": self.inputs(number).tolist(), "start": number == 0, **known}


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def servers(artifact_folder: Path, tmp_path: Path, redis_server: RedisServer) -> Iterator[dict[str, ServerProcess]]:
    """By their addresses."""
    servers = [
        ServerProcess(artifact_folder, tmp_path / f"server-{number}", store=redis_server.url, lease_s=LEASE_S)
        for number in range(SERVERS)
    ]
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.await_ready()
        yield {server.address: server for server in servers}
    finally:
        for server in servers:
            server.kill()


def owner_of(caller: Caller, redis: RedisServer) -> str:
    """The address of the server that has its session."""
    with contextlib.closing(redis.client()) as client:
        owner = client.hget(f"dnc:{{{caller.name}}}:lease", "address")
    assert isinstance(owner, bytes)
    return owner.decode()


async def disturb(servers: dict[str, ServerProcess], redis: RedisServer, callers: list[Caller]) -> None:
    async def progress() -> None:
        before = [len(caller.outputs) for caller in callers]
        await until(
            lambda: all(len(caller.outputs) >= count + 3 for caller, count in zip(callers, before, strict=True)),
            "nobody stands still",
        )

    await progress()
    killed = owner_of(callers[-1], redis)
    servers[killed].kill()
    await progress()  # the others took its sessions over
    assert owner_of(callers[-1], redis) != killed
    await asyncio.to_thread(servers[killed].start)  # the hash leads back to it, the sessions stay where they are
    await progress()
    drained = owner_of(callers[0], redis)
    await asyncio.to_thread(servers[drained].terminate)
    await progress()
    assert owner_of(callers[0], redis) != drained


def test_nothing_is_lost_doubled_or_other(
    artifact_folder: Path,
    tmp_path: Path,
    redis_server: RedisServer,
    servers: dict[str, ServerProcess],
    row_runner: ModelRunner,  # noqa: F811
) -> None:
    own = [Own(f"own-{number}", number) for number in range(OWN)]
    of_triton = [OfTriton(kind, OWN + number) for number, kind in enumerate(KINDS)]
    callers: list[Caller] = [*own, *of_triton]

    async def live(address: str) -> list[int]:
        stop = asyncio.Event()
        running = [asyncio.create_task(caller.run(address, stop)) for caller in callers]
        disturbing = asyncio.create_task(disturb(servers, redis_server, callers))
        try:
            # A caller that fails ends it all.
            await asyncio.wait([disturbing, *running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.set()
            ended = await asyncio.gather(*running, return_exceptions=True)
        assert ended == [None] * len(callers)
        await disturbing
        async with AsyncClient(address) as client:
            at = {session.id: session.position async for session in client.sessions()}
        return [at[caller.name] for caller in callers]

    with ExitStack() as stack:
        address = stack.enter_context(proxy("envoy", list(servers), tmp_path))
        until_served(address)
        positions = asyncio.run(live(address))
    for caller, position in zip(callers, positions, strict=True):
        got = np.concatenate(caller.outputs)
        sent = np.concatenate([caller.inputs(chunk) for chunk in range(len(caller.outputs))])
        (truth,), _ = row_runner.step(StateRows(1, row_runner.layout, row_runner.device), [0], [0], [sent])
        assert position == len(got), caller.name
        assert np.array_equal(got, truth), caller.name
