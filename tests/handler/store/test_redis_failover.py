"""A primary that is killed, cut off or demoted, and what its replicas must have before anything counts."""

import contextlib
import shutil
from collections.abc import Callable, Iterator

import pytest

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store import open_store
from dnc_serve.handler.store.contract import Append, Fenced, Keep, Store, StoreRefused
from dnc_serve.handler.store.redis_connection import TooFewReplicas
from tests.handler.store.redis_group import await_replicas, running_group
from tests.waiting import wait_until

LEASE_S = 600.0


@pytest.fixture
def opened(tmp_path) -> Iterator[Callable[..., Store]]:
    """Opens the store as a server does."""
    stores = []

    def open_at(url: str, **settings: object) -> Store:
        store = open_store(url, tmp_path, owner="server-a:8500", lease_s=LEASE_S, **settings)
        stores.append(store)
        store.open()
        return store

    yield open_at
    for store in stores:
        with contextlib.suppress(StoreUnavailable):
            store.close()


@pytest.fixture
def replicated(redis_server) -> Callable[..., tuple]:
    """A primary and replicas of it, without Sentinels."""

    def start(replicas: int, **settings: str):
        primary = redis_server()
        others = [redis_server(replicaof=f"127.0.0.1 {primary.port}", **settings) for _ in range(replicas)]
        return primary, *others

    return start


def follow(server, primary) -> None:
    with contextlib.closing(server.client()) as client:
        client.replicaof(*(("NO", "ONE") if primary is None else ("127.0.0.1", primary.port)))


def persist(act: Callable[[], object], what: str) -> object:
    """The result, once the store can be used."""
    results = []

    def succeeds() -> bool:
        try:
            results.append(act())
        except StoreUnavailable:
            return False
        return True

    wait_until(succeeds, what)
    return results[0]


def test_a_primary_that_is_left_behind_answers_nothing(opened, replicated, writes):
    first, second, third = replicated(2)
    await_replicas(first, 2)
    store = opened(first.url, replicas=1)
    sessions = writes(store)
    sessions.begin("a", records=2)
    lease = store.acquire("a")
    follow(second, None)
    follow(third, second)
    for refused in (
        lambda: store.commit([Append(sessions.record("a", 3))]),
        lambda: store.head("a"),
        lambda: store.acquire("b"),
        lambda: store.renew([lease]),
    ):
        with pytest.raises(TooFewReplicas, match="0 of its replicas"):
            refused()
    there = opened(second.url, replicas=1)
    assert there.head("a").ordinal == 2
    follow(first, second)  # and demoted, it writes nothing
    await_replicas(second, 2)
    with pytest.raises(StoreUnavailable, match="is a replica now"):
        store.commit([Append(sessions.record("a", 3))])
    assert writes(there).ordinals("a") == [1, 2]


def test_what_replicas_have_not_synced_in_time_is_not_acknowledged(opened, replicated, writes):
    primary, replica = replicated(1)
    await_replicas(primary, 1)
    store = opened(primary.url, replicas=1)
    sessions = writes(store)
    sessions.begin("a")
    with replica.frozen(), pytest.raises(TooFewReplicas):
        store.commit([Append(sessions.record("a", 1))])
    await_replicas(primary, 1)
    assert store.commit([Append(sessions.record("a", 1, body=b"again"))]) == [None]
    assert [record.body for record in store.records("a", 7, 0)] == [b"again"]


def test_in_async_only_sync_waits_for_replicas(opened, replicated, writes):
    primary, replica = replicated(1)
    await_replicas(primary, 1)
    store = opened(primary.url, replicas=1, answers_first=True)
    sessions = writes(store)
    store.sync()
    sessions.begin("a")
    with replica.frozen():
        sessions.append("a", 1)
        with pytest.raises(TooFewReplicas):
            store.sync()
    await_replicas(primary, 1)
    store.sync()


def test_what_a_failover_lost_is_not_called_durable_and_nothing_goes_on_from_it(opened, replicated, writes):
    primary, _ = replicated(1)
    await_replicas(primary, 1)
    store = opened(primary.url, replicas=1, answers_first=True)
    sessions = writes(store)
    sessions.begin("a", records=2)
    store.sync()
    earlier = primary.folder / "earlier"
    shutil.copytree(primary.folder / "appendonlydir", earlier)
    sessions.append("a", 3)
    primary.kill()
    shutil.rmtree(primary.folder / "appendonlydir")
    earlier.rename(primary.folder / "appendonlydir")
    primary.start()  # as a replica would that had not got the last record
    await_replicas(primary, 1)
    with pytest.raises(StoreUnavailable, match="lost what was committed last"):
        store.sync()
    for late in (Append(sessions.record("a", 4)), Keep(sessions.snapshot("a", 3))):
        (outcome,) = store.commit([late])
        assert isinstance(outcome, Fenced)
        assert "can't follow record 2" in str(outcome)
    assert sessions.ordinals("a") == [1, 2]


def test_a_server_that_cannot_wait_for_replicas_is_refused(opened, replicated, redis_server):
    with pytest.raises(StoreRefused, match=r"0 of its replicas .* store_replicas is 1\. Are they connected"):
        opened(redis_server().url, replicas=1)
    primary, _ = replicated(1, appendonly="no")
    with pytest.raises(StoreRefused, match="appendonly yes"):
        opened(primary.url, replicas=1)
    old = redis_server(rename_command='WAITAOF" "')
    with pytest.raises(StoreRefused, match=r"knows no WAITAOF, .*expected Redis or Valkey 7\.2"):
        opened(old.url, replicas=1)
    cluster = redis_server(cluster_enabled="yes")
    with pytest.raises(StoreRefused, match="is a cluster, and store_replicas is 1"):
        opened(cluster.url, replicas=1)


def test_a_primary_that_comes_up_with_other_settings_is_not_written_to(opened, writes):
    with running_group(replicas=1) as group:
        store = opened(group.url)
        sessions = writes(store)
        sessions.begin("a")
        with contextlib.closing(group.servers[1].client()) as client:
            client.config_set("appendfsync", "everysec")
        group.fail_over(kill=group.servers[0])

        def refused() -> bool:
            with pytest.raises(StoreUnavailable) as error:
                store.commit([Append(sessions.record("a", 1))])
            return "appendfsync is 'everysec'" in str(error.value)

        wait_until(refused, "the new primary is looked at")
        with contextlib.closing(group.servers[1].client()) as client:
            client.config_set("appendfsync", "always")
        persist(lambda: sessions.append("a", 1), "it is right now")
