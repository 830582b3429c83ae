"""Several servers on one real Redis: one owner for each session, whatever is killed or frozen."""

import asyncio
import contextlib
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode

from dnc_serve.client import Client
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.deploy.proxies import CONFIGS, proxy, until_served
from tests.end_to_end.streaming import Stream, live, lost_doubled_differing, none_stands_still, random_inputs
from tests.handler.door import TIMEOUT, Door, open_door, refused
from tests.handler.scrape import scrape
from tests.handler.store.conftest import RedisServer, running_redis
from tests.server_process import ServerProcess

LEASE_S = 120.0  # long enough for a busy machine to renew it in time
SHORT_LEASE_S = 2.0
SESSIONS = 12

pytestmark = pytest.mark.usefixtures("history")


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@contextmanager
def two_doors(artifact: Path, folder: Path, redis: RedisServer) -> Iterator[tuple[Door, Door]]:
    with ExitStack() as stack:
        doors = [
            stack.enter_context(open_door(artifact, folder / name, store=redis.url, lease_s=LEASE_S)) for name in "ab"
        ]
        yield doors[0], doors[1]


def test_a_session_has_one_owner_and_moves_when_it_drains(
    small_artifact: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    with two_doors(small_artifact, tmp_path, redis_server) as (first, second):
        first.create("s")
        first.step("s", random_inputs(0, 5), position=0)
        calls = [
            lambda: second.step("s", random_inputs(1, 5), position=5),
            lambda: second.dump("s"),
            lambda: second.create("s"),
            lambda: second.stub.DeleteSession(pb.DeleteSessionRequest(session_id="s"), timeout=TIMEOUT),
        ]
        for call in calls:
            with refused("SESSION_MOVED", StatusCode.FAILED_PRECONDITION) as info:
                call()
            assert info["owner"] == first.addresses.grpc
            assert 0 < float(info["lease_seconds"]) <= LEASE_S
        assert second.session("s").position == 5  # to be asked about it need not move
        first.server.drain(5.0)
        again = second.step("s", random_inputs(0, 5), position=0)
        assert again.replayed
        assert second.step("s", random_inputs(1, 5), position=5).position == 10


def test_who_writes_after_its_lease_was_taken_over_is_refused_and_may_have_the_session_again(
    small_artifact: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    """As a server would that was frozen for longer than its lease and doesn't know."""
    with two_doors(small_artifact, tmp_path, redis_server) as (first, second):
        first.create("s")
        first.step("s", random_inputs(0, 5), position=0)
        with contextlib.closing(redis_server.client()) as client:
            assert client.hset("dnc:{s}:lease", "until_ms", 0) == 0
        assert second.step("s", random_inputs(1, 5), position=5).position == 10
        with refused("NOT_READY", StatusCode.UNAVAILABLE):
            first.step("s", random_inputs(2, 5), position=5)
        with refused("SESSION_MOVED", StatusCode.FAILED_PRECONDITION) as info:
            first.step("s", random_inputs(3, 5), position=10)
        assert info["owner"] == second.addresses.grpc
        assert first.session("s").position == 10  # as the store has it, wherever it is
        second.server.drain(5.0)
        assert first.step("s", random_inputs(3, 5), position=10).position == 15


def test_a_session_that_ended_at_one_server_has_ended_at_all(
    small_artifact: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    with two_doors(small_artifact, tmp_path, redis_server) as (first, second):
        first.create("s")
        first.stub.DeleteSession(pb.DeleteSessionRequest(session_id="s"), timeout=TIMEOUT)
        with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND) as info:
            second.session("s")
        assert info["why"] == "deleted"
        assert second.create("s").position == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_a_proxy_leads_to_the_owner_wherever_the_hash_points(
    name: str, small_artifact: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    sessions = [f"s{number}" for number in range(SESSIONS)]
    with two_doors(small_artifact, tmp_path, redis_server) as doors:
        for session_id in sessions:
            doors[0].create(session_id)
        with proxy(name, [door.addresses.grpc for door in doors], tmp_path) as address:
            until_served(address)
            with Client(address, timeout_s=LEASE_S / 2) as client:
                for session_id in sessions:
                    with client.session(session_id) as session:
                        session.step(random_inputs(0, 3))
                        assert session.info().position == 3
                with client.multiplex() as together:
                    outputs = together.step({together.session(name): random_inputs(1, 3) for name in sessions})
                assert all(isinstance(output, np.ndarray) for output in outputs.values()), outputs
        # The second server was asked for some, and owns none.
        assert scrape(doors[1])["dnc_errors_total", "SESSION_MOVED"] > 0
        assert scrape(doors[1])["dnc_timesteps_total"] == 0


async def disturb(servers: list[ServerProcess], redis: RedisServer, streams: list[Stream]) -> None:
    """Kills one server, freezes another beyond its leases, rolls the third, and kills the store; life must go on."""

    async def progress() -> None:
        await none_stands_still(streams)

    await progress()
    servers[0].kill()
    await progress()  # the others took its sessions over
    await asyncio.to_thread(servers[0].start)
    with servers[1].frozen():
        await asyncio.sleep(SHORT_LEASE_S + 1.0)
        await progress()
    # it wakes, and must find out that its time is over
    await progress()
    await asyncio.to_thread(servers[2].terminate)  # it is rolled: drained, ended, and started anew
    await progress()
    await asyncio.to_thread(servers[2].start)
    redis.kill()
    await asyncio.sleep(1.0)
    redis.start()
    await progress()


@pytest.mark.parametrize("way", ["directly", pytest.param("through HAProxy", marks=pytest.mark.long)])
def test_lost_doubled_and_differing_timesteps_are_none(
    way: str, small_artifact: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    servers = [
        ServerProcess(small_artifact, tmp_path / f"server-{number}", store=redis_server.url, lease_s=SHORT_LEASE_S)
        for number in range(3)
    ]
    streams = [Stream(number) for number in range(SESSIONS)]
    addresses = [server.address for server in servers]
    random.Random(5).shuffle(addresses)

    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.await_ready()
        with ExitStack() as stack:
            if way == "through HAProxy":
                address = stack.enter_context(proxy("haproxy", addresses, tmp_path))
                until_served(address)
                addresses = [address]
            positions = asyncio.run(live(addresses, streams, lambda: disturb(servers, redis_server, streams)))
    finally:
        for server in servers:
            server.kill()
    assert lost_doubled_differing(small_artifact, streams, positions) == (0, 0, 0)
