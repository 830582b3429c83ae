"""A token that ends takes its open calls with it; one whose limits change holds what is open to them."""

import hashlib
import queue
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_status import rpc_status

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, chunk, error_info, open_door
from tests.handler.harness import random_inputs


def entry(name: str, token: str, **settings: Any) -> str:
    lines = [f'name = "{name}"', f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"']
    lines += [f"{key} = {value}" for key, value in settings.items()]
    return "[[token]]\n" + "\n".join(lines) + "\n"


class Served:
    """A door with a tokens file that a test may change."""

    def __init__(self, door: Door, path: Path) -> None:
        self.door = door
        self.path = path

    def options(self, token: str) -> dict[str, Any]:
        return {"metadata": (("authorization", f"Bearer {token}"),), "timeout": TIMEOUT}

    def create(self, token: str, session_id: str) -> None:
        self.door.stub.CreateSession(pb.CreateSessionRequest(session_id=session_id), **self.options(token))

    def position(self, token: str, session_id: str) -> int:
        request = pb.GetSessionRequest(session_id=session_id)
        return self.door.stub.GetSession(request, **self.options(token)).session.position

    def stream(self, token: str) -> "Stream":
        return Stream(self, token)


class Stream:
    """An open stream, one chunk at a time."""

    def __init__(self, served: Served, token: str) -> None:
        self._messages: queue.SimpleQueue[pb.StreamRequest | None] = queue.SimpleQueue()
        self.call = served.door.stub.Stream(iter(self._messages.get, None), **served.options(token))

    def step(self, session_id: str) -> pb.StreamResponse:
        self._messages.put(pb.StreamRequest(chunk=chunk(session_id, random_inputs(0, 1))))
        return next(self.call)

    def close(self) -> None:
        self._messages.put(None)


def refusal_of(call: Any) -> grpc.RpcError:
    """What an open call ends with though nothing is sent."""
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    return caught.value


@pytest.fixture
def served(artifact_folder: Path, tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "tokens.toml"
    path.write_text(entry("alice", "alice-1") + entry("bob", "bob-1"))
    with open_door(artifact_folder, tmp_path / "state", tokens=str(path)) as door:
        yield Served(door, path)


def revoke(served: Served) -> None:
    served.path.write_text(entry("bob", "bob-1") + entry("alice", "alice-2"))


def expire(served: Served) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    served.path.write_text(entry("alice", "alice-1", expires=soon) + entry("bob", "bob-1") + entry("alice", "alice-2"))


def rename(served: Served) -> None:
    served.path.write_text(entry("carol", "alice-1") + entry("bob", "bob-1") + entry("alice", "alice-2"))


@pytest.mark.parametrize("ending", [revoke, expire, rename])
def test_what_a_token_has_open_ends_with_it(served: Served, ending: Callable[[Served], None]) -> None:
    served.create("alice-1", "hers")
    served.create("bob-1", "his")
    hers, his = served.stream("alice-1"), served.stream("bob-1")
    assert hers.step("hers").chunk.position == 1
    assert his.step("his").chunk.position == 1
    stub = served.door.stub
    watchers = [
        stub.WatchMemory(
            pb.WatchMemoryRequest(session_id="hers", max_frames_per_second=rate), **served.options("alice-1")
        )
        for rate in (0, 0.002)
    ]
    watched = [next(watcher).position for watcher in watchers]
    assert watched == [1, 1]
    ending(served)
    for ended in map(refusal_of, (hers.call, *watchers)):
        assert ended.code() is StatusCode.UNAUTHENTICATED
        status = rpc_status.from_call(ended)
        assert status is not None
        assert error_info(status).reason == "UNAUTHENTICATED"
    assert served.position("alice-2", "hers") == 1
    assert his.step("his").chunk.position == 2
    hers.close()
    his.close()


def test_a_stream_that_goes_on_stepping_is_ended_too(served: Served) -> None:
    served.create("alice-1", "hers")
    hers = served.stream("alice-1")
    hers.step("hers")
    revoke(served)
    steps = 1
    with pytest.raises(grpc.RpcError) as caught:
        while True:
            hers.step("hers")
            steps += 1
    assert caught.value.code() is StatusCode.UNAUTHENTICATED
    assert served.position("alice-2", "hers") >= steps
    hers.close()


def test_a_reader_that_never_reads_is_ended_too(served: Served) -> None:
    served.create("alice-1", "hers")
    wide = pb.StreamRequest(chunk=chunk("hers", random_inputs(0, 200)))
    deaf = served.door.stub.Stream(iter(lambda: wide, None), **served.options("alice-1"))
    assert next(deaf).chunk.position == 200
    revoke(served)
    with pytest.raises(grpc.RpcError) as caught:
        for _ in deaf:  # what was written before is still to be read
            pass
    assert caught.value.code() is StatusCode.UNAUTHENTICATED


def test_limits_that_change_hold_what_is_open(served: Served) -> None:
    served.create("alice-1", "hers")
    hers = served.stream("alice-1")
    assert hers.step("hers").chunk.position == 1
    served.path.write_text(entry("alice", "alice-1", read_only="true") + entry("bob", "bob-1"))
    while (answer := hers.step("hers")).HasField("chunk"):
        pass
    assert error_info(answer.error.status).reason == "PERMISSION_DENIED"
    served.path.write_text(entry("alice", "alice-1") + entry("bob", "bob-1"))
    while (answer := hers.step("hers")).HasField("error"):
        assert error_info(answer.error.status).reason in ("PERMISSION_DENIED", "STEP_GAP")
        if error_info(answer.error.status).reason == "STEP_GAP":
            break
    hers.close()
