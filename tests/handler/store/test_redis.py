"""What only Redis has to do: leases, fencing, wrong settings, and a server that is killed, frozen or full."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store import open_store
from dnc_serve.handler.store.contract import Append, Begin, End, Fenced, LeaseHeld, Store, StoreRefused
from tests.waiting import wait_until

LEASE_S = 600.0


@pytest.fixture
def server_at(tmp_path) -> Iterator[Callable[..., Store]]:
    """Opens the store as the server of that address does."""
    stores = []

    def open_at(url: str, owner: str = "server-a:8500", lease_s: float = LEASE_S) -> Store:
        store = open_store(url, tmp_path, owner=owner, lease_s=lease_s)
        stores.append(store)
        store.open()
        return store

    yield open_at
    for store in stores:
        try:
            store.close()
        except StoreUnavailable:
            continue  # its Redis is gone, too


@pytest.fixture
def url(shared_redis) -> str:
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis.url


@pytest.fixture
def end_leases(shared_redis) -> Callable[..., None]:
    """Lets time go on until the leases of these sessions have run out."""

    def end(*names: str) -> None:
        with shared_redis.client() as client:
            for name in names:
                assert client.hset(f"dnc:{{{name}}}:lease", "until_ms", 0) == 0

    return end


def test_a_session_has_one_owner_until_the_lease_ends(url, server_at, shared_redis, end_leases):
    first, second = server_at(url), server_at(url, "server-b:8500")
    lease = first.acquire("a")
    assert lease.ttl_s == LEASE_S
    with pytest.raises(LeaseHeld) as held:
        second.acquire("a")
    assert held.value.owner == "server-a:8500"
    assert 0 < held.value.rest_s <= LEASE_S
    assert second.acquire("b").token > 0
    end_leases("a")
    assert first.renew([lease]) == [lease]  # it lasts anew
    with pytest.raises(LeaseHeld):
        second.acquire("a")
    end_leases("a")
    taken = second.acquire("a")
    assert taken.token > lease.token
    assert first.renew([lease]) == [None]


def test_a_lease_lasts_as_long_as_it_says(url, server_at):
    first, second = server_at(url, lease_s=0.5), server_at(url, "server-b:8500")
    asked_at = time.monotonic()
    first.acquire("a")
    while True:
        try:
            second.acquire("a")
            break
        except LeaseHeld as held:
            time.sleep(held.rest_s)
    assert time.monotonic() - asked_at >= 0.5


def test_after_a_takeover_late_writes_are_refused(url, server_at, writes, end_leases):
    first, second = server_at(url), server_at(url, "server-b:8500")
    writes(first).begin("a", records=3)
    end_leases("a")
    # The lease has run out, but nobody else has taken the session: the write is still right.
    writes(first).append("a", 4)
    second.acquire("a")
    records = writes(first)
    for late in (
        Append(records.record("a", 5)),
        Begin(records.head("a", 8)),
        End("a", 7, "deleted", 1.0),
    ):
        (outcome,) = first.commit([late])
        assert isinstance(outcome, Fenced)
        assert "taken the session over" in str(outcome)
    assert second.head("a").ordinal == 4
    writes(second).append("a", 5)
    assert writes(second).ordinals("a") == [1, 2, 3, 4, 5]


def test_a_released_session_can_be_taken_at_once(url, server_at):
    first, second = server_at(url), server_at(url, "server-b:8500")
    lease = first.acquire("a")
    first.release([lease])
    taken = second.acquire("a")
    assert taken.token > lease.token
    first.release([lease])  # an old one releases nothing
    with pytest.raises(LeaseHeld):
        first.acquire("a")
    second.close()
    first.acquire("a")


def test_a_server_that_starts_again_does_not_wait_for_itself(url, server_at, writes):
    before, after = server_at(url), server_at(url)
    writes(before).begin("a", records=2)
    lease = after.acquire("a")
    assert isinstance(before.commit([Append(writes(before).record("a", 3))])[0], Fenced)
    assert after.acquire("a") == lease, "asking twice changes nothing"
    writes(after).append("a", 3)


def test_tokens_grow_even_where_the_lease_was_forgotten(url, shared_redis, server_at):
    store = server_at(url)
    token = store.acquire("a").token
    with shared_redis.client() as client:
        assert client.delete("dnc:{a}:lease") == 1
    assert store.acquire("a").token > token


def test_a_session_that_was_never_acquired_is_not_written(url, server_at, writes):
    store = server_at(url)
    (outcome,) = store.commit([Begin(writes(store).head("a"))])
    assert isinstance(outcome, Fenced)
    assert store.head("a") is None


def test_in_one_commit_the_sessions_of_others_are_refused_alone(url, server_at, writes, end_leases):
    first, second = server_at(url), server_at(url, "server-b:8500")
    for name in "abc":
        writes(first).begin(name)
    end_leases("b")
    second.acquire("b")
    outcomes = first.commit([Append(writes(first).record(name, ordinal)) for ordinal in (1, 2) for name in "abc"])
    assert [isinstance(outcome, Fenced) for outcome in outcomes] == [False, True, False] * 2
    assert [writes(second).ordinals(name) for name in "abc"] == [[1, 2], [], [1, 2]]


@pytest.mark.parametrize(
    ("name", "value"), [("appendonly", "no"), ("appendfsync", "everysec"), ("maxmemory-policy", "allkeys-lru")]
)
def test_settings_that_lose_sessions_are_refused_by_name(redis_server, server_at, name, value):
    server = redis_server(**{name.replace("-", "_"): value})
    with pytest.raises(StoreRefused, match=f"{name} is '{value}' and must be "):
        server_at(server.url)


def test_where_config_is_denied_info_is_asked_and_the_rest_is_warned_of(redis_server, server_at, caplog):
    server = redis_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "hosted", "on", ">pass", "~*", "+@all", "-config")
    url = f"redis://hosted:pass@127.0.0.1:{server.port}/0"
    with caplog.at_level(logging.WARNING):
        server_at(url).acquire("a")
    assert "see to it that appendfsync is always" in caplog.text
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreRefused, match="maxmemory-policy is 'allkeys-lru'"):
        server_at(url)


def test_kill_9_and_restart_of_redis_loses_nothing_and_heals(redis_server, server_at, writes):
    server = redis_server()
    store = server_at(server.url)
    sessions = writes(store)
    sessions.begin("a", records=5)
    sessions.keep("a", 5)
    for ordinal in range(6, 200):
        sessions.append("a", ordinal)
    server.kill()
    for refused in (
        lambda: store.commit([Append(sessions.record("a", 200))]),
        lambda: store.head("a"),
        lambda: list(store.heads()),
        lambda: store.acquire("b"),
    ):
        with pytest.raises(StoreUnavailable):
            refused()
    server.start()
    sessions.append("a", 200)  # its scripts were forgotten, the lease was not
    assert sessions.ordinals("a") == list(range(1, 201))
    assert store.snapshot("a", 7, 5) == sessions.snapshot("a", 5)


def test_a_redis_that_comes_back_with_other_settings_is_not_written_to(redis_server, server_at, writes):
    server = redis_server()
    store = server_at(server.url)
    sessions = writes(store)
    sessions.begin("a")
    server.kill()
    with pytest.raises(StoreUnavailable):
        store.head("a")
    server.settings["appendfsync"] = "no"
    server.start()
    with pytest.raises(StoreUnavailable, match="appendfsync is 'no'"):
        store.commit([Append(sessions.record("a", 1))])
    with server.client() as client:
        client.config_set("appendfsync", "always")
    sessions.append("a", 1)


def test_a_commit_that_timed_out_does_not_undo_a_later_one(redis_server, server_at, writes):
    """A frozen Redis reads the late commit from its socket after it has woken, perhaps after the next one."""
    server = redis_server()
    store = server_at(server.url)  # gives up after 2 s
    sessions = writes(store)
    sessions.begin("a", records=1)
    with server.frozen(), pytest.raises(StoreUnavailable, match=r"(?i)time"):
        store.commit([Append(sessions.record("a", 2, body=b"given up"))])
    assert store.commit([Append(sessions.record("a", 2, body=b"the next"))]) == [None]
    with server.client() as client:  # when the connection that was given up is closed there, all of it was read
        wait_until(lambda: client.info("clients")["connected_clients"] == 2, "the late commit was read")
    assert [record.body for record in store.records("a", 7, 1)] == [b"the next"]


def test_an_overtaken_commit_is_refused(url, shared_redis, server_at, writes):
    """What the test before provokes by chance, by its sequence number."""
    store = server_at(url)
    sessions = writes(store)
    sessions.begin("a", records=1)
    store._sequence += 10
    sessions.append("a", 2)
    store._sequence -= 5
    (outcome,) = store.commit([Append(sessions.record("a", 2, body=b"late"))])
    assert "overtaken" in str(outcome)
    store._sequence += 5
    assert [record.body for record in store.records("a", 7, 1)] == [sessions.record("a", 2).body]


def test_forgotten_scripts_are_loaded_again(url, shared_redis, server_at, writes):
    store = server_at(url)
    sessions = writes(store)
    sessions.begin("a", records=1)
    with shared_redis.client() as client:
        client.script_flush()
    sessions.append("a", 2)
    assert sessions.ordinals("a") == [1, 2]


def test_a_full_redis_changes_nothing_lets_sessions_end_and_heals(redis_server, server_at, writes):
    server = redis_server()
    store = server_at(server.url)
    sessions = writes(store)
    for name in "ab":
        sessions.begin(name, records=3)
    sessions.keep("a", 3)

    def kept() -> list[object]:
        heads = sorted(store.heads(), key=lambda head: head.session_id)  # a scan has no order
        return [*heads, *store.records("a", 7, 0), *store.snapshots("a", 7)]

    before = kept()
    with server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            # It would replace records 2 and 3 and the snapshot.
            store.commit([Append(sessions.record("a", 2, body=b"another"))])
        assert kept() == before
        assert store.commit([End("b", 7, "expired", 5.0)]) == [None]
        assert store.head("b").ended == "expired"
        client.config_set("maxmemory", "0")
    sessions.append("a", 4)
    assert sessions.ordinals("a") == [1, 2, 3, 4]


def test_a_cluster_holds_each_session_in_one_slot(redis_server, server_at, writes):
    server = redis_server(cluster_enabled="yes")
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), "the cluster works")
    store = server_at(server.url)
    sessions = writes(store)
    names = [f"s{number}" for number in range(20)]
    for name in names:
        sessions.begin(name)
    assert store.commit([Append(sessions.record(name, 1)) for name in names]) == [None] * 20
    sessions.keep("s3", 1)
    assert sorted(head.session_id for head in store.heads()) == sorted(names)
    assert sessions.ordinals("s19") == [1]
    assert store.prunable(1e9, 1 << 40) == []
    assert store.size_bytes() == 20 * 100 + 500


def test_a_password_is_never_told(redis_server, server_at, caplog):
    server = redis_server(requirepass="s3cret-word")
    with pytest.raises(StoreUnavailable) as wrong:
        server_at(f"redis://:not-the-s3cret@127.0.0.1:{server.port}/0")
    with pytest.raises(ValueError, match="can't be read") as unreadable:
        server_at(f"redis://:s3cret/word@127.0.0.1:{server.port}")
    with pytest.raises(ValueError, match="unknown") as unknown:
        server_at(f"rodis://:s3cret-word@127.0.0.1:{server.port}")
    store = server_at(f"redis://:s3cret-word@127.0.0.1:{server.port}/0")
    store.acquire("a")
    server.kill()
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.port}") as gone:
        store.acquire("a")
    for error in (wrong, unreadable, unknown, gone):
        assert "s3cret" not in f"{error.getrepr(style='long', chain=False).reprcrash}{error.value!r}"
    assert "s3cret" not in caplog.text


def test_a_shared_store_needs_an_address_to_send_clients_to(url, server_at):
    with pytest.raises(ValueError, match="owner is empty"):
        server_at(url, owner="")


def test_without_its_client_the_way_to_install_it_is_told():
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "from pathlib import Path\n"
        "from dnc_serve.handler.store import open_store\n"
        "open_store('sqlite', Path('.'))\n"
        "open_store('redis://localhost', Path('.'), owner='a:1')\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith("a store in Redis needs its client: pip install 'dnc-serve[redis]'")


def test_ids_that_look_like_patterns_or_tags_stay_apart(url, shared_redis, server_at, writes):
    sessions = writes(server_at(url))
    for name in ("a", "a:head", "a~b@c.d", "-"):
        sessions.begin(name, records=1)
    with shared_redis.client() as client:
        client.set("dnc:other", "not a session")
    assert sorted(head.session_id for head in sessions.store.heads()) == sorted(["a", "a:head", "a~b@c.d", "-"])
    with pytest.raises(redis.ResponseError), shared_redis.client() as client:
        client.lpush("dnc:other", "x")  # the foreign key is untouched
