"""Proxies in front of two real servers: calls of one session reach one server, and a draining one gets nothing new."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
import yaml

from dnc_serve.client import Client
from dnc_serve.handler.torchserve.ports import free_port
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from tests.deploy.observed import DEPLOY
from tests.handler.door import TIMEOUT, Door, chunk, open_door, outputs_of
from tests.handler.harness import random_inputs

CONFIGS = {"haproxy": DEPLOY / "haproxy" / "haproxy.cfg", "nginx": DEPLOY / "nginx" / "nginx.conf"}
COMMANDS = {
    "haproxy": (["haproxy", "-c", "-f"], ["haproxy", "-db", "-f"]),
    "nginx": (["nginx", "-t", "-p", ".", "-c"], ["nginx", "-g", "daemon off;", "-p", ".", "-c"]),
}
SESSIONS = [f"session-{number}" for number in range(24)]


def test_the_configurations_agree_on_what_they_hash() -> None:
    envoy = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())
    manager = envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    [host] = manager["route_config"]["virtual_hosts"]
    assert host["routes"][0]["route"]["hash_policy"] == [{"header": {"header_name": "x-dnc-session"}}]
    assert "balance hdr(x-dnc-session)" in CONFIGS["haproxy"].read_text()
    assert "$http_x_dnc_session" in CONFIGS["nginx"].read_text()


@pytest.fixture
def doors(artifact: Path, tmp_path: Path) -> Iterator[list[Door]]:
    with ExitStack() as stack:
        yield [stack.enter_context(open_door(artifact, tmp_path / name)) for name in ("a", "b")]


@contextmanager
def proxy(name: str, doors: list[Door], folder: Path) -> Iterator[str]:
    """The proxy with its deployed configuration, but for the addresses; checked, run, and stopped."""
    port = free_port()
    text = CONFIGS[name].read_text()
    for theirs, door in zip(("127.0.0.1:8510", "127.0.0.1:8520"), doors, strict=True):
        assert theirs in text
        text = text.replace(theirs, door.addresses.grpc)
    text = text.replace("bind :8500", f"bind 127.0.0.1:{port}").replace("listen 8500", f"listen 127.0.0.1:{port}")
    if name == "nginx":
        text = f"pid nginx.pid;\nerror_log {folder}/error.log;\n{text}"
    config = folder / CONFIGS[name].name
    config.write_text(text)
    check, run = COMMANDS[name]
    checked = subprocess.run([*check, str(config)], cwd=folder, capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen([*run, str(config)], cwd=folder)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


def step(stub: dnc_pb2_grpc.DncServiceStub, session_id: str) -> pb.ChunkResult:
    request = pb.StepRequest(chunk=chunk(session_id, random_inputs(1, 2)))
    return stub.Step(request, timeout=TIMEOUT, metadata=[("x-dnc-session", session_id)]).result


def ids(door: Door) -> set[str]:
    sessions = door.stub.ListSessions(pb.ListSessionsRequest(), timeout=TIMEOUT).sessions
    return {session.session_id for session in sessions}


def until_served(address: str) -> None:
    """Returns when a call through the proxy succeeds."""
    deadline = time.monotonic() + TIMEOUT
    with grpc.insecure_channel(address) as channel:
        while True:
            try:
                dnc_pb2_grpc.DncServiceStub(channel).GetModel(
                    pb.GetModelRequest(), timeout=TIMEOUT, wait_for_ready=True
                )
                return
            except grpc.RpcError:
                assert time.monotonic() < deadline
                time.sleep(0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_session_is_always_on_the_same_server(name: str, doors: list[Door], tmp_path: Path) -> None:
    with proxy(name, doors, tmp_path) as address:
        until_served(address)
        for round_number in range(3):
            # A connection for each round, as after a client's restart.
            with grpc.insecure_channel(address) as channel:
                stub = dnc_pb2_grpc.DncServiceStub(channel)
                for session_id in SESSIONS:
                    metadata = [("x-dnc-session", session_id)]
                    if round_number == 0:
                        request = pb.CreateSessionRequest(session_id=session_id)
                        stub.CreateSession(request, timeout=TIMEOUT, metadata=metadata)
                    # Would be SESSION_NOT_FOUND on the other server: these two share no store.
                    assert step(stub, session_id).position == 4 * round_number + 2
                    messages = [pb.StreamRequest(chunk=chunk(session_id, random_inputs(2, 2)))]
                    [answer] = stub.Stream(iter(messages), timeout=TIMEOUT, metadata=metadata)
                    assert answer.chunk.position == 4 * round_number + 4
        first, second = map(ids, doors)
        assert first | second == set(SESSIONS)
        assert len(first) > 4
        assert len(second) > 4


@pytest.mark.parametrize("name", CONFIGS)
def test_the_client_library_streams_through_it(name: str, doors: list[Door], tmp_path: Path) -> None:
    chunks = [random_inputs(seed, 3) for seed in range(20)]
    doors[0].create("alone")
    expected = [outputs_of(doors[0].step("alone", inputs)) for inputs in chunks]
    with proxy(name, doors, tmp_path) as address:
        until_served(address)
        with Client(address) as client, client.session("through") as session:
            outputs = list(session.stream(chunks))
        assert [output.tobytes() for output in outputs] == [output.tobytes() for output in expected]


def test_haproxy_sends_nothing_new_to_a_draining_server_and_leaves_the_rest(doors: list[Door], tmp_path: Path) -> None:
    with proxy("haproxy", doors, tmp_path) as address:
        until_served(address)
        with grpc.insecure_channel(address) as channel:
            stub = dnc_pb2_grpc.DncServiceStub(channel)
            for session_id in SESSIONS:
                request = pb.CreateSessionRequest(session_id=session_id)
                stub.CreateSession(request, timeout=TIMEOUT, metadata=[("x-dnc-session", session_id)])
            leaving, staying = doors
            moved, stayed = ids(leaving), ids(staying)
            leaving.server.drain(0.1)
            deadline = time.monotonic() + TIMEOUT
            missing: set[str] = set()
            while missing != moved:
                assert time.monotonic() < deadline
                missing = {session_id for session_id in moved if outcome(stub, session_id) == grpc.StatusCode.NOT_FOUND}
                time.sleep(0.1)
            for session_id in stayed:
                assert step(stub, session_id).position == 2


def outcome(stub: dnc_pb2_grpc.DncServiceStub, session_id: str) -> grpc.StatusCode:
    try:
        step(stub, session_id)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK
