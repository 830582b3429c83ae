"""Two servers on a store that fails over: its primary is killed under load, replaced, and comes back."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.end_to_end.streaming import Stream, live, lost_doubled_differing, none_stands_still
from tests.handler.store.redis_group import RedisGroup, running_group
from tests.histories.recorder import may_lose
from tests.server_process import ServerProcess
from tests.waiting import until

LEASE_S = 6.0
SESSIONS = 6

pytestmark = pytest.mark.usefixtures("history")


async def fail_over(group: RedisGroup, streams: list[Stream], durability: str) -> None:
    await none_stands_still(streams)
    first = group.servers[0]
    with may_lose() if durability == "async" else contextlib.nullcontext():
        second = await asyncio.to_thread(group.fail_over, first)
        await none_stands_still(streams)
    assert second is not first
    await asyncio.to_thread(first.start)  # as the primary that it was: it knows nothing of the other
    await none_stands_still(streams)
    with contextlib.closing(first.client()) as client:
        await until(lambda: client.info("replication")["role"] == "slave", "it has become a replica")
    await none_stands_still(streams)


@pytest.mark.parametrize("durability", ["sync", pytest.param("async", marks=pytest.mark.long)])
def test_no_acknowledged_timestep_is_lost_when_a_replica_takes_the_primarys_place(
    durability: str, small_artifact: Path, tmp_path: Path
) -> None:
    streams = [Stream(number) for number in range(SESSIONS)]
    with running_group(replicas=2) as group, contextlib.ExitStack() as stack:
        settings = {"store": group.url, "store_replicas": 1, "lease_s": LEASE_S, "durability": durability}
        servers = [ServerProcess(small_artifact, tmp_path / f"server-{number}", **settings) for number in range(2)]
        for server in servers:
            stack.callback(server.kill)
            server.launch()
        for server in servers:
            server.await_ready()
        addresses = [server.address for server in servers]
        positions = asyncio.run(live(addresses, streams, lambda: fail_over(group, streams, durability)))
    assert lost_doubled_differing(small_artifact, streams, positions) == (0, 0, 0)
