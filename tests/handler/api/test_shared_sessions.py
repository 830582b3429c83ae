"""Several servers on one Redis: every session is listed, counted and ended, whoever has it, and nobody learns of
another's."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from tests.handler.door import TIMEOUT, Door, chunk, error_info, open_door, refused
from tests.handler.harness import random_inputs
from tests.handler.store.conftest import RedisServer
from tests.waiting import frozen

LEASE_S = 2.0


def entry(name: str, **settings: Any) -> str:
    """A token of this name, which is its own secret."""
    lines = [f'name = "{name}"', f'sha256 = "{hashlib.sha256(name.encode()).hexdigest()}"']
    return "\n".join(["[[token]]", *lines, *(f"{key} = {value}" for key, value in settings.items())]) + "\n"


class As:
    """A door, with a token on each call."""

    def __init__(self, door: Door, token: str) -> None:
        self.stub = door.stub
        self.options: dict[str, Any] = {"metadata": (("authorization", f"Bearer {token}"),), "timeout": TIMEOUT}

    def create(self, session_id: str, **options: Any) -> pb.CreateSessionResponse:
        return self.stub.CreateSession(pb.CreateSessionRequest(session_id=session_id, **options), **self.options)

    def delete(self, session_id: str) -> bool:
        return self.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id), **self.options).deleted

    def get(self, session_id: str) -> pb.Session:
        return self.stub.GetSession(pb.GetSessionRequest(session_id=session_id), **self.options).session

    def step(self, session_id: str, timesteps: int = 2, **options: Any) -> pb.ChunkResult:
        message = chunk(session_id, random_inputs(0, timesteps), **options)
        return self.stub.Step(pb.StepRequest(chunk=message), **self.options).result

    def pages(self, size: int = 0, prefix: str = "") -> list[list[tuple[str, int]]]:
        """(id, position) of all sessions, page by page."""
        pages, token = [], ""
        while True:
            request = pb.ListSessionsRequest(page_size=size, page_token=token, prefix=prefix)
            answer = self.stub.ListSessions(request, **self.options)
            pages.append([(one.session_id, one.position) for one in answer.sessions])
            if not (token := answer.next_page_token):
                return pages

    def names(self) -> list[str]:
        return [name for page in self.pages() for name, _ in page]


@contextmanager
def doors(artifact: Path, folder: Path, redis: RedisServer, count: int = 2, **settings: Any) -> Iterator[list[Door]]:
    """Servers that keep one state in memory each, so that sessions are soon nobody's."""
    small = {"slots": 1, "host_bytes": 2000, "store": redis.url, "lease_s": LEASE_S} | settings
    with ExitStack() as stack:
        yield [stack.enter_context(open_door(artifact, folder / str(number), **small)) for number in range(count)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    path = tmp_path / "tokens.toml"
    path.write_text(
        entry("alice") + entry("bob") + entry("carol", max_sessions=3) + entry("dora", max_state_bytes=4000)
    )
    return str(path)


def test_sessions_that_left_memory_end_when_their_time_is_up(
    artifact_folder: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    names = [f"s{number}" for number in range(6)]
    with doors(artifact_folder, tmp_path, redis_server, idle_timeout_s=1.0) as (first, second):
        for name in names:
            first.create(name)
            first.step(name, random_inputs(0, 2))
        listing = pb.ListSessionsRequest()
        until(lambda: not second.stub.ListSessions(listing, timeout=TIMEOUT).sessions)
        assert not first.stub.ListSessions(listing, timeout=TIMEOUT).sessions
        for door in (first, second):
            for name in names:
                with refused("SESSION_EXPIRED", StatusCode.NOT_FOUND) as info:
                    door.session(name)
                assert info["why"] == "idle"


def test_sessions_that_left_memory_end_of_age(artifact_folder: Path, tmp_path: Path, redis_server: RedisServer) -> None:
    with doors(artifact_folder, tmp_path, redis_server, count=1, max_age_s=1.0) as (door,):
        for number in range(4):
            door.create(f"s{number}")
        until(lambda: not door.stub.ListSessions(pb.ListSessionsRequest(), timeout=TIMEOUT).sessions)
        with refused("SESSION_EXPIRED", StatusCode.NOT_FOUND) as info:
            door.session("s0")
        assert info["why"] == "age"


def test_a_session_that_is_used_anywhere_is_not_idle(
    artifact_folder: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    with doors(artifact_folder, tmp_path, redis_server, idle_timeout_s=15.0) as (first, second):
        first.create("used")
        first.create("idle")
        position = 0

        def idle_has_ended() -> bool:
            nonlocal position
            try:
                position = first.step("used", random_inputs(0, 1), position=position).position
            except grpc.RpcError as error:
                # Where a busy machine kept `first` from renewing its lease, `second` may have it for a moment.
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            try:
                second.session("idle")
            except grpc.RpcError:
                return True
            return False

        until(idle_has_ended)
        assert second.session("used").position == position


def test_what_a_killed_server_had_ends_too(artifact_folder: Path, tmp_path: Path, redis_server: RedisServer) -> None:
    with (
        Process(artifact_folder, tmp_path / "killed", redis_server) as killed,
        doors(artifact_folder, tmp_path, redis_server, count=1, idle_timeout_s=1.0) as (door,),
    ):
        killed.stub.CreateSession(pb.CreateSessionRequest(session_id="left"), timeout=TIMEOUT)
        killed.process.kill()
        listing = pb.ListSessionsRequest()
        assert [one.session_id for one in door.stub.ListSessions(listing, timeout=TIMEOUT).sessions] == ["left"]
        until(lambda: not door.stub.ListSessions(listing, timeout=TIMEOUT).sessions)


def test_lists_are_the_same_at_every_server(
    artifact_folder: Path, tmp_path: Path, redis_server: RedisServer, tokens: str
) -> None:
    with doors(artifact_folder, tmp_path, redis_server, tokens=tokens) as (first, second):
        expected = []
        for number in range(7):
            door, name = (first, second)[number % 2], f"{'ab'[number // 4]}{number}"
            As(door, "alice").create(name)
            expected.append((name, As(door, "alice").step(name, number + 1).position))
        As(first, "bob").create("a-bobs")
        for door in (first, second):
            alice = As(door, "alice")
            assert alice.pages() == [expected]
            assert alice.pages(size=3) == [expected[:3], expected[3:6], expected[6:]]
            assert alice.pages(size=2, prefix="b") == [expected[4:6], expected[6:]]
            assert alice.pages(prefix="c") == [[]]
            assert As(door, "bob").names() == ["a-bobs"]
        As(first, "alice").delete(expected[0][0])
        assert As(second, "alice").pages() == [expected[1:]]


def test_a_token_has_as_many_sessions_as_it_may_at_all_servers_together(
    artifact_folder: Path, tmp_path: Path, redis_server: RedisServer, tokens: str
) -> None:
    with doors(artifact_folder, tmp_path, redis_server, tokens=tokens) as (first, second):
        for name, limit, reason in (("carol", 3, "SESSION_LIMIT"), ("dora", 2, "STATE_TOO_LARGE")):
            made = 0
            for number in range(8):
                door = (first, second)[number % 2]
                try:
                    As(door, name).create(f"{name}-{number}")
                    made += 1
                except grpc.RpcError as exc:
                    assert exc.code() is StatusCode.RESOURCE_EXHAUSTED
            assert made == limit
            assert len(As(first, name).names()) == limit
            with refused(reason, StatusCode.RESOURCE_EXHAUSTED):
                As(first, name).create("one-more")
            As(first, name).delete(f"{name}-0")
            As(second, name).create(f"{name}-again")
            with refused(reason, StatusCode.RESOURCE_EXHAUSTED):
                As(second, name).create("one-more")
            assert As(second, name).create(f"{name}-again", allow_existing=True).created is False


def test_places_of_sessions_that_never_came_to_be_are_free_again(
    artifact_folder: Path, tmp_path: Path, redis_server: RedisServer, tokens: str
) -> None:
    with doors(artifact_folder, tmp_path, redis_server, count=1, tokens=tokens) as (door,):
        with redis_server.client() as client:  # what a server leaves that dies at the wrong moment
            client.zadd("dnc:owned:carol", {f"ghost-{number}": 0 for number in range(500)})
            client.zadd("dnc:used", {f"ghost-{number}": 0 for number in range(500)})
        for number in range(3):
            As(door, "carol").create(f"s{number}")
        assert As(door, "carol").names() == ["s0", "s1", "s2"]
        with refused("SESSION_LIMIT", StatusCode.RESOURCE_EXHAUSTED):
            As(door, "carol").create("s3")
        with redis_server.client() as client:
            until(lambda: client.zcard("dnc:used") == 3)


def test_sessions_of_a_redis_without_an_index_are_found(
    artifact_folder: Path, tmp_path: Path, redis_server: RedisServer, tokens: str
) -> None:
    with doors(artifact_folder, tmp_path, redis_server, count=1, tokens=tokens) as (door,):
        for number in range(3):
            As(door, "carol").create(f"s{number}")
    with redis_server.client() as client:
        client.delete("dnc:owned:carol", "dnc:used", "dnc:born", "dnc:entered")
    with doors(artifact_folder, tmp_path, redis_server, count=1, tokens=tokens, idle_timeout_s=3.0) as (door,):
        assert As(door, "carol").names() == ["s0", "s1", "s2"]
        with refused("SESSION_LIMIT", StatusCode.RESOURCE_EXHAUSTED):
            As(door, "carol").create("s3")
        until(lambda: not As(door, "carol").names())


def strangers_calls(bob: As, name: str) -> list[Callable[[], object]]:
    stub, options = bob.stub, bob.options
    dump = pb.DumpMemoryRequest(dump=pb.Dump(session_id=name))
    past = pb.DumpMemoryRequest(dump=pb.Dump(session_id=name, position=1))
    fork = pb.ForkSessionRequest(session_id=name, fork_session_id="mine")
    reset = pb.ResetSessionRequest(reset=pb.Reset(session_id=name))
    return [
        lambda: bob.get(name),
        lambda: bob.step(name),
        lambda: bob.delete(name),
        lambda: list(stub.DumpMemory(dump, **options)),
        lambda: list(stub.DumpMemory(past, **options)),
        lambda: list(stub.WatchMemory(pb.WatchMemoryRequest(session_id=name), **options)),
        lambda: list(stub.ExportSession(pb.ExportSessionRequest(session_id=name), **options)),
        lambda: stub.ForkSession(fork, **options),
        lambda: stub.ResetSession(reset, **options),
    ]


def test_a_stranger_learns_nothing_of_a_session_and_takes_nothing(
    artifact_folder: Path, tmp_path: Path, redis_server: RedisServer, tokens: str
) -> None:
    with doors(artifact_folder, tmp_path, redis_server, tokens=tokens) as (first, second):
        alice = As(first, "alice")
        for name in ("left", "kept"):  # "left" leaves memory, and with it the server
            alice.create(name)
            alice.step(name)
        leases = {name: lease_of(redis_server, name) for name in ("left", "kept")}
        for door in (first, second):
            bob = As(door, "bob")
            for name in ("left", "kept"):
                for call in strangers_calls(bob, name):
                    with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND) as info:
                        call()
                    assert info == {"session_id": name}
                answers = bob.stub.Stream(
                    iter([pb.StreamRequest(chunk=chunk(name, random_inputs(0, 1)))]), **bob.options
                )
                [answer] = answers
                assert error_info(answer.error.status).reason == "SESSION_NOT_FOUND"
                for allow_existing in (True, False):
                    with refused("SESSION_EXISTS", StatusCode.ALREADY_EXISTS) as info:
                        bob.create(name, allow_existing=allow_existing)
                    assert info == {"session_id": name}
        assert {name: lease_of(redis_server, name) for name in leases} == leases
        for name in ("kept", "left"):
            assert alice.step(name, position=2).position == 4


def lease_of(redis: RedisServer, session_id: str) -> tuple[bytes, ...]:
    """Who holds it, or held it last, under which token."""
    with redis.client() as client:
        return tuple(client.hmget(f"dnc:{{{session_id}}}:lease", "token", "holder"))


def test_to_be_asked_about_a_session_does_not_move(
    artifact_folder: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    with doors(artifact_folder, tmp_path, redis_server) as (first, second):
        created = first.create("s")
        first.step("s", random_inputs(0, 3), position=0)
        lease = lease_of(redis_server, "s")
        there, here = second.session("s"), first.session("s")
        assert (there.incarnation, there.position, there.durable_position) == (created.incarnation, 3, 3)
        assert (there.model_digest, there.state_bytes, there.created) == (
            here.model_digest,
            here.state_bytes,
            here.created,
        )
        assert there.earliest_position == here.earliest_position == 0
        assert lease_of(redis_server, "s") == lease
        assert first.step("s", random_inputs(1, 2), position=3).position == 5
        assert second.session("s").position == 5
        first.stub.DeleteSession(pb.DeleteSessionRequest(session_id="s"), timeout=TIMEOUT)
        with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND) as info:
            second.session("s")
        assert info["why"] == "deleted"


class Process:
    """A server in a process of its own, that can be frozen."""

    def __init__(self, artifact: Path, folder: Path, redis: RedisServer) -> None:
        command = [sys.executable, "-m", "tests.serving", str(artifact), str(folder), "0"]
        command += [f"store={redis.url}", f"lease_s={LEASE_S}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.channel = grpc.insecure_channel(self.address)
        self.stub = dnc_pb2_grpc.DncServiceStub(self.channel)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()

    def frozen(self) -> AbstractContextManager[None]:
        return frozen(self.process.pid)


def test_a_server_that_was_frozen_shows_no_old_positions(
    artifact_folder: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    with (
        Process(artifact_folder, tmp_path / "frozen", redis_server) as frozen,
        doors(artifact_folder, tmp_path, redis_server, count=1) as (other,),
    ):
        frozen.stub.CreateSession(pb.CreateSessionRequest(session_id="s"), timeout=TIMEOUT)
        message = chunk("s", random_inputs(0, 2), position=0)
        frozen.stub.Step(pb.StepRequest(chunk=message), timeout=TIMEOUT)
        asked = pb.GetSessionRequest(session_id="s")
        assert frozen.stub.GetSession(asked, timeout=TIMEOUT).session.position == 2
        with frozen.frozen():

            def taken_over() -> bool:
                try:
                    return other.step("s", random_inputs(1, 3), position=2).position == 5
                except grpc.RpcError as exc:
                    assert exc.code() is StatusCode.FAILED_PRECONDITION  # SESSION_MOVED, until the lease has run out
                    return False

            until(taken_over)
            got = frozen.stub.GetSession.future(asked, timeout=TIMEOUT)
            listed = frozen.stub.ListSessions.future(pb.ListSessionsRequest(), timeout=TIMEOUT)
        assert got.result().session.position == 5
        assert [one.position for one in listed.result().sessions] == [5]
