"""Proxies in front of two real servers: calls of one session reach one server, and a draining one gets nothing new."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import yaml

from dnc_serve.client import Client
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from tests.deploy.observed import DEPLOY
from tests.deploy.proxies import CONFIGS, proxy, until_served
from tests.handler.door import TIMEOUT, Door, chunk, open_door, outputs_of
from tests.handler.harness import random_inputs
from tests.waiting import wait_until

SESSIONS = [f"session-{number}" for number in range(24)]


def test_the_configurations_agree_on_what_they_hash_and_how_they_find_an_owner() -> None:
    envoy = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())
    manager = envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    [host] = manager["route_config"]["virtual_hosts"]
    assert host["routes"][0]["route"]["hash_policy"] == [{"header": {"header_name": "x-dnc-session"}}]
    assert "balance hdr(x-dnc-session)" in CONFIGS["haproxy"].read_text()
    assert "$http_x_dnc_session" in CONFIGS["nginx"].read_text()
    [found] = [one for one in manager["http_filters"] if one["name"] == "envoy.filters.http.header_to_metadata"]
    [rule] = found["typed_config"]["request_rules"]
    assert rule["header"] == "x-dnc-owner"
    [cluster] = envoy["static_resources"]["clusters"]
    key = rule["on_header_present"]["key"]
    assert cluster["lb_subset_config"]["subset_selectors"] == [{"keys": [key]}]
    for server in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]:
        address = server["endpoint"]["address"]["socket_address"]
        named = server["metadata"]["filter_metadata"]["envoy.lb"][key]
        assert named == f"{address['address']}:{address['port_value']}"


@pytest.fixture
def doors(artifact: Path, tmp_path: Path) -> Iterator[list[Door]]:
    with ExitStack() as stack:
        yield [stack.enter_context(open_door(artifact, tmp_path / name)) for name in ("a", "b")]


def addresses(doors: list[Door]) -> list[str]:
    return [door.addresses.grpc for door in doors]


def step(stub: dnc_pb2_grpc.DncServiceStub, session_id: str) -> pb.ChunkResult:
    request = pb.StepRequest(chunk=chunk(session_id, random_inputs(1, 2)))
    return stub.Step(request, timeout=TIMEOUT, metadata=[("x-dnc-session", session_id)]).result


def ids(door: Door) -> set[str]:
    sessions = door.stub.ListSessions(pb.ListSessionsRequest(), timeout=TIMEOUT).sessions
    return {session.session_id for session in sessions}


def until_both_serve(address: str) -> None:
    """Returns when the proxy has seen both servers healthy: sessions of one that is seen later would move to it."""
    with grpc.insecure_channel(address) as channel:
        stub = dnc_pb2_grpc.DncServiceStub(channel)

        def model(session_id: str) -> pb.GetModelResponse:
            return stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT, metadata=[("x-dnc-session", session_id)])

        wait_until(lambda: len({model(session_id).server_epoch for session_id in SESSIONS}) == 2, "both are asked")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_session_is_always_on_the_same_server(name: str, doors: list[Door], tmp_path: Path) -> None:
    with proxy(name, addresses(doors), tmp_path) as address:
        until_served(address)
        until_both_serve(address)
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
    with proxy(name, addresses(doors), tmp_path) as address:
        until_served(address)
        with Client(address) as client, client.session("through") as session:
            outputs = list(session.stream(chunks))
        assert [output.tobytes() for output in outputs] == [output.tobytes() for output in expected]


# nginx finds out by failed calls alone.
@pytest.mark.parametrize("name", ["envoy", "haproxy"])
def test_a_draining_server_gets_nothing_new_and_the_rest_stays(name: str, doors: list[Door], tmp_path: Path) -> None:
    with proxy(name, addresses(doors), tmp_path) as address:
        until_served(address)
        with grpc.insecure_channel(address) as channel:
            stub = dnc_pb2_grpc.DncServiceStub(channel)
            for session_id in SESSIONS:
                request = pb.CreateSessionRequest(session_id=session_id)
                stub.CreateSession(request, timeout=TIMEOUT, metadata=[("x-dnc-session", session_id)])
            leaving, staying = doors
            moved, stayed = ids(leaving), ids(staying)
            leaving.server.drain(0.1)
            wait_until(
                lambda: all(outcome(stub, session_id) == grpc.StatusCode.NOT_FOUND for session_id in moved),
                "calls of all its sessions go to the other one",
            )
            for session_id in stayed:
                assert step(stub, session_id).position == 2


def outcome(stub: dnc_pb2_grpc.DncServiceStub, session_id: str) -> grpc.StatusCode:
    try:
        step(stub, session_id)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK
