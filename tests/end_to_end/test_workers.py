"""`dnc serve --workers 2`: one machine to whoever calls it, at any worker; each worker with a crash of its own."""

import hashlib
import secrets
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest

from dnc_serve.client import Client
from dnc_serve.handler.arrays import Float32
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.inference import inference_pb2, inference_pb2_grpc
from dnc_serve.proto.targets import DIRECTLY
from dnc_serve.proto.workers import owner_of
from tests.end_to_end.servers import Server, running
from tests.end_to_end.test_serve import failed_start, step
from tests.handler.door import chunk, error_info, outputs_of, refused, whole
from tests.handler.harness import INPUT_SIZE
from tests.waiting import PATIENCE_S, frozen, wait_until

TWO = ("--runtime", "plain", "--workers", "2")
_names = count()


class Way:
    """A way into the machine: the common port, or a worker's own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.insecure_channel(address, options=DIRECTLY)
        self.stub = dnc_pb2_grpc.DncServiceStub(self.channel)

    def step(self, session_id: str, inputs: Float32, **options: Any) -> pb.ChunkResult:
        request = pb.StepRequest(chunk=chunk(session_id, inputs, **options))
        return self.stub.Step(request, timeout=PATIENCE_S).result

    def create(self, session_id: str, **options: Any) -> pb.Session:
        request = pb.CreateSessionRequest(session_id=session_id, **options)
        return self.stub.CreateSession(request, timeout=PATIENCE_S).session

    def dump(self, session_id: str) -> dict[str, Float32]:
        request = pb.DumpMemoryRequest(dump=pb.Dump(session_id=session_id))
        return whole(response.part for response in self.stub.DumpMemory(request, timeout=PATIENCE_S))

    def export(self, session_id: str, **options: Any) -> bytes:
        request = pb.ExportSessionRequest(session_id=session_id, **options)
        return b"".join(part.data for part in self.stub.ExportSession(request, timeout=PATIENCE_S))


@contextmanager
def ways_into(server: Server) -> Iterator[list[Way]]:
    """Worker 0's own port, worker 1's, and the common one."""
    with ExitStack() as stack:
        common = Way(server.grpc)
        told = common.stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_S).workers
        ways = [*(Way(f"127.0.0.1{address}") for address in told.addresses), common]
        for way in ways:
            stack.callback(way.channel.close)
        yield ways


@pytest.fixture(scope="module")
def machine(small_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(small_artifact, tmp_path_factory.mktemp("machine"), *TWO) as server:
        yield server


@pytest.fixture(scope="module")
def ways(machine: Server) -> Iterator[list[Way]]:
    with ways_into(machine) as ways:
        yield ways


def named(owner: int) -> str:
    """A new id, of a session that this worker has."""
    return next(name for number in _names if owner_of(name := f"session-{number}", 2) == owner)


def inputs(seed: int, timesteps: int = 3) -> Float32:
    return np.random.default_rng(seed).standard_normal((timesteps, INPUT_SIZE)).astype(np.float32)


# Every way leads to every session.


@pytest.mark.parametrize("owner", [0, 1])
@pytest.mark.parametrize("way", [0, 1, 2])
def test_calls_reach_the_session(ways: list[Way], way: int, owner: int) -> None:
    here, name = ways[way], named(owner)
    session = here.create(name)
    with refused("SESSION_EXISTS", grpc.StatusCode.ALREADY_EXISTS):
        here.create(name)
    result = here.step(name, inputs(1), position=0)
    assert here.step(name, inputs(1), position=0).replayed
    with refused("STEP_GAP", grpc.StatusCode.FAILED_PRECONDITION) as metadata:
        here.step(name, inputs(1), position=7)
    assert metadata["expected_position"] == "3"
    for other in ways:
        request = pb.GetSessionRequest(session_id=name)
        found = other.stub.GetSession(request, timeout=PATIENCE_S).session
        assert (found.incarnation, found.position) == (session.incarnation, 3)
        assert {field: array.tolist() for field, array in other.dump(name).items()} == {
            field: array.tolist() for field, array in here.dump(name).items()
        }
    blob, copy = here.export(name), named(owner)
    assert len(here.export(name, position=3, incarnation=session.incarnation)) == len(blob)
    parts = [pb.ImportSessionRequest(session_id=copy, total_bytes=len(blob), data=blob[:100])]
    parts.append(pb.ImportSessionRequest(data=blob[100:]))
    assert here.stub.ImportSession(iter(parts), timeout=PATIENCE_S).session.position == 3
    assert outputs_of(here.step(copy, inputs(2))).tolist() == outputs_of(here.step(name, inputs(2))).tolist()
    assert result.position == 3
    reset = pb.ResetSessionRequest(reset=pb.Reset(session_id=name, scope=pb.RESET_SCOPE_ALL))
    assert here.stub.ResetSession(reset, timeout=PATIENCE_S).result.changed
    assert outputs_of(here.step(name, inputs(1))).tolist() == outputs_of(result).tolist()
    frames = here.stub.WatchMemory(pb.WatchMemoryRequest(session_id=name), timeout=PATIENCE_S)
    assert next(frames).position == 9
    frames.cancel()
    delete = pb.DeleteSessionRequest(session_id=name)
    assert here.stub.DeleteSession(delete, timeout=PATIENCE_S).deleted
    assert not here.stub.DeleteSession(delete, timeout=PATIENCE_S).deleted
    with refused("SESSION_NOT_FOUND", grpc.StatusCode.NOT_FOUND):
        here.step(name, inputs(1))


def requests_of(names: list[str], rounds: int) -> Iterator[pb.StreamRequest]:
    """What a sender of many sessions sends: chunks, resets, dumps."""
    for number in range(rounds):
        for name in names[:2]:
            yield pb.StreamRequest(reset=pb.Reset(session_id=name, request_id=1000 + number))
            yield pb.StreamRequest(dump=pb.Dump(session_id=name, names=["usage_vector"], request_id=2000 + number))
        for place, name in enumerate(names):
            yield pb.StreamRequest(chunk=chunk(name, inputs(number + place), request_id=number))


def refused_requests(names: list[str]) -> Iterator[pb.StreamRequest]:
    """And what is refused."""
    for name in names:
        yield pb.StreamRequest(chunk=chunk(name, inputs(1), position=1, pipelined=True, request_id=3000))
        yield pb.StreamRequest(chunk=chunk(name, inputs(1), request_id=3001))
    yield pb.StreamRequest(chunk=chunk("nobody-0", inputs(1), request_id=4000))
    yield pb.StreamRequest(chunk=chunk("nobody-1", inputs(1), request_id=4001))


def told_each(responses: Iterator[pb.StreamResponse]) -> dict[str, list[Any]]:
    """What each session was told, in order: the numbers of the messages, with bits or reasons."""
    told: dict[str, list[Any]] = {}
    for response in responses:
        for one in response.batch.responses or [response]:
            kind = one.WhichOneof("message")
            answer = getattr(one, kind)
            name = answer.session.session_id if kind == "reset" else answer.session_id
            what = {
                "chunk": lambda answer: (answer.position, answer.outputs.data),
                "dump": lambda answer: (answer.position, answer.data),
                "reset": lambda answer: answer.changed,
                "error": lambda answer: error_info(answer.status).reason,
            }[kind](answer)
            told.setdefault(name, []).append((kind, answer.request_id, what))
    return told


@pytest.mark.parametrize("at_once", [1, 50])
def test_a_stream_carries_sessions_of_all_workers(ways: list[Way], at_once: int) -> None:
    told = []
    for way in ways:
        names = [named(owner) for owner in (0, 1, 0, 1, 1, 0)]
        for name in names:
            way.create(name)
        told.append({})
        for messages in (list(requests_of(names, 30)), list(refused_requests(names))):
            if at_once > 1:
                groups = [messages[start : start + at_once] for start in range(0, len(messages), at_once)]
                messages = [pb.StreamRequest(batch=pb.RequestBatch(requests=group)) for group in groups]
            for name, what in told_each(way.stub.Stream(iter(messages), timeout=PATIENCE_S)).items():
                told[-1].setdefault(name, []).extend(what)
        alike = {name: f"{place}" for place, name in enumerate(names)}
        told[-1] = {alike.get(name, name): what for name, what in told[-1].items()}
        assert len(told[-1]) == len(names) + 2
    for name, first in told[0].items():
        for other in told[1:]:
            differ = [(a, b) for a, b in zip(first, other[name], strict=True) if a != b]
            assert not differ
    assert told[0]["0"][-2:] == [("error", 3000, "STEP_CONFLICT"), ("error", 3001, "STEP_GAP")]
    assert told[0]["nobody-1"] == [("error", 4001, "SESSION_NOT_FOUND")]
    assert len(told[0]["0"]) == 30 * 3 + 2


def test_a_sender_that_goes_too_fast_is_held_back(ways: list[Way]) -> None:
    """More than all windows hold, both ways, while nothing is read."""
    name, chunks = named(1), 3000
    ways[0].create(name)
    messages = (pb.StreamRequest(chunk=chunk(name, inputs(1, 64), position=64 * number)) for number in range(chunks))
    responses = ways[0].stub.Stream(messages, timeout=PATIENCE_S)
    positions = [response.chunk.position for response in responses]
    assert positions == [64 * number for number in range(1, chunks + 1)]


@pytest.mark.parametrize(("source", "fork"), [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("way", [0, 1])
def test_a_fork_may_be_in_another_worker(ways: list[Way], way: int, source: int, fork: int) -> None:
    here, name, now, past = ways[way], named(source), named(fork), named(fork)
    session = here.create(name)
    outputs = [outputs_of(here.step(name, inputs(number))).tolist() for number in range(4)]
    known = {"session_id": name, "incarnation": session.incarnation}
    for created in (True, False):
        made = here.stub.ForkSession(pb.ForkSessionRequest(fork_session_id=past, position=6, **known))
        assert (made.created, made.session.position) == (created, 6)
        made = here.stub.ForkSession(pb.ForkSessionRequest(fork_session_id=now, **known))
        assert (made.created, made.session.position) == (created, 12)
    assert [outputs_of(here.step(past, inputs(number))).tolist() for number in (2, 3)] == outputs[2:]
    assert outputs_of(here.step(now, inputs(5))).tolist() == outputs_of(here.step(name, inputs(5))).tolist()
    with refused("SESSION_EXISTS", grpc.StatusCode.ALREADY_EXISTS):
        here.stub.ForkSession(pb.ForkSessionRequest(fork_session_id=now, **known))
    with refused("STEP_GAP", grpc.StatusCode.FAILED_PRECONDITION):
        here.stub.ForkSession(pb.ForkSessionRequest(fork_session_id=named(fork), position=99, **known))
    with refused("SESSION_REPLACED", grpc.StatusCode.FAILED_PRECONDITION):
        known["incarnation"] = 5
        here.stub.ForkSession(pb.ForkSessionRequest(fork_session_id=named(fork), **known))
    with refused("SESSION_NOT_FOUND", grpc.StatusCode.NOT_FOUND):
        here.stub.ForkSession(pb.ForkSessionRequest(session_id=f"{name}-none", fork_session_id=named(fork)))


def infer(model: str, name: str, number: int) -> inference_pb2.ModelInferRequest:
    """A chunk of a sequence, as Triton's clients send it."""
    request = inference_pb2.ModelInferRequest(model_name=model, id=f"{name}-{number}")
    request.parameters["sequence_id"].string_param = name
    request.parameters["sequence_start"].bool_param = number == 0
    request.inputs.add(name="INPUT", datatype="FP32", shape=[3, INPUT_SIZE])
    request.raw_input_contents.append(inputs(number).tobytes())
    return request


@pytest.mark.parametrize("way", [0, 1])
def test_sequences_of_triton_s_protocol_reach_their_workers(ways: list[Way], way: int) -> None:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(ways[way].channel)
    served = ways[way].stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_S).name
    model = Path(served).name
    outputs = []
    for owner in (0, 1):
        name = named(owner)
        answers = [stub.ModelInfer(infer(model, name, number), timeout=PATIENCE_S) for number in range(4)]
        outputs.append([answer.raw_output_contents[0] for answer in answers])
        assert ways[2].step(name, inputs(4)).position == 15
    names = [named(owner) for owner in (0, 1, 1, 0)]
    messages = [infer(model, name, number) for number in range(4) for name in names]
    told: dict[str, list[bytes]] = {}
    for answer in stub.ModelStreamInfer(iter(messages), timeout=PATIENCE_S):
        assert not answer.error_message
        told.setdefault(answer.infer_response.id.rpartition("-")[0], []).append(
            answer.infer_response.raw_output_contents[0]
        )
    assert sorted(told) == sorted(names)
    assert outputs[0] == outputs[1] == told[names[0]] == told[names[1]] == told[names[2]]
    with refused("BAD_REQUEST", grpc.StatusCode.INVALID_ARGUMENT):
        stub.ModelInfer(infer(model, named(1), 1), timeout=PATIENCE_S)


def test_pages_hold_the_sessions_of_all_workers(ways: list[Way]) -> None:
    names = sorted(f"page-{number}" for number in range(40))
    for number, name in enumerate(names):
        ways[number % 3].create(name)
    for way in ways:
        for size in (1, 7, 39, 40, 100):
            found: list[str] = []
            token = ""
            while True:
                request = pb.ListSessionsRequest(page_size=size, page_token=token, prefix="page-")
                page = way.stub.ListSessions(request, timeout=PATIENCE_S)
                assert len(page.sessions) <= size
                found += [session.session_id for session in page.sessions]
                if not (token := page.next_page_token):
                    break
            assert found == names
        with refused("BAD_REQUEST", grpc.StatusCode.INVALID_ARGUMENT):
            way.stub.ListSessions(pb.ListSessionsRequest(page_size=1001), timeout=PATIENCE_S)


def test_odd_requests_are_refused_as_ever(ways: list[Way]) -> None:
    for way in ways:
        for name in ("", "x" * 200, "\u00e4 b", "a\nb"):
            with refused("BAD_ID", grpc.StatusCode.INVALID_ARGUMENT):
                way.create(name)
        raw = way.channel.unary_unary("/dnc.v1.DncService/GetSession")
        with refused("BAD_REQUEST", grpc.StatusCode.INVALID_ARGUMENT):
            raw(b"\xff\xff\xff", timeout=PATIENCE_S)
        stream = way.channel.stream_stream("/dnc.v1.DncService/Stream")
        (answer,) = stream(iter([b"\xff\xff\xff"]), timeout=PATIENCE_S)
        assert error_info(pb.StreamResponse.FromString(answer).error.status).reason == "BAD_REQUEST"
        with refused("BAD_BLOB", grpc.StatusCode.INVALID_ARGUMENT):
            parts = [pb.ImportSessionRequest(session_id=named(1), total_bytes=4000, data=b"x" * 50)]
            way.stub.ImportSession(iter(parts), timeout=PATIENCE_S)


def test_a_client_calls_the_worker_that_has_the_session(machine: Server, ways: list[Way]) -> None:
    with Client(machine.grpc) as client, client.multiplex() as multiplex:
        client.model()
        sessions = [multiplex.session(named(number % 2)) for number in range(8)]
        multiplex.step({session: inputs(1) for session in sessions})
        streams = multiplex._multiplex.streams.values()
        for stream in streams:
            for name in stream.members:
                assert stream.target == ways[owner_of(name, 2)].address
        assert {stream.target for stream in streams} == {way.address for way in ways[:2]}


def test_the_page_of_metrics_is_the_machine_s(machine: Server, ways: list[Way]) -> None:
    for owner in (0, 1):
        ways[0].create(name := named(owner))
        ways[0].step(name, inputs(1))
    series = page_of(machine)
    for worker in (0, 1):
        assert series[f'dnc_worker_up{{worker="{worker}"}}'] == 1
        assert series[f'dnc_timesteps_total{{worker="{worker}"}}'] >= 3
        assert series[f'dnc_sessions{{tier="slot",worker="{worker}"}}'] >= 1


def page_of(server: Server) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://{server.addresses['metrics']}/metrics").read().decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


# A worker ends.


class Talk:
    """A raw stream that stays open."""

    def __init__(self, way: Way) -> None:
        self._requests: SimpleQueue[pb.StreamRequest | None] = SimpleQueue()
        self._responses = way.stub.Stream(iter(self._requests.get, None), timeout=PATIENCE_S)

    def send(self, name: str, position: int, **options: Any) -> None:
        self._requests.put(pb.StreamRequest(chunk=chunk(name, inputs(position), position=position, **options)))

    def receive(self) -> pb.StreamResponse:
        return next(self._responses)

    def end(self) -> list[pb.StreamResponse]:
        self._requests.put(None)
        return list(self._responses)


@contextmanager
def talking(artifact: Path, folder: Path) -> Iterator[tuple[Server, Talk, str, str]]:
    """A stream into worker 0 of two, on which a session of each has made a step: its own, and the other one's."""
    mine, other = named(0), named(1)
    with running(artifact, folder, *TWO) as server, ways_into(server) as ways:
        for name in (mine, other):
            ways[2].create(name)
        talk = Talk(ways[0])
        for name in (mine, other):
            talk.send(name, 0)
            assert talk.receive().chunk.position == 3
        yield server, talk, mine, other


@pytest.mark.usefixtures("history")
def test_a_killed_worker_takes_nobody_else_s_sessions_along(small_artifact: Path, tmp_path: Path) -> None:
    with talking(small_artifact, tmp_path) as (server, talk, mine, other):
        killed = server.worker_of(1)
        with frozen(killed.pid):  # it reads, and answers nothing
            talk.send(other, 3, request_id=1)
            talk.send(other, 6, request_id=2, pipelined=True)
            talk.send(mine, 3)
            assert talk.receive().chunk.session_id == mine
            killed.kill()
        for request_id in (1, 2):
            lost = talk.receive().error
            assert (lost.session_id, lost.request_id) == (other, request_id)
            assert error_info(lost.status).reason == "STORE_UNAVAILABLE"
            assert "worker 1 of this server doesn't answer" in lost.status.message
        # What was sent behind it may not be applied in its place, also not once the worker is back.
        wait_until(lambda: "a worker serves again" in server.log, "it is back")
        talk.send(other, 3, request_id=3, pipelined=True)
        assert error_info(talk.receive().error.status).reason == "STORE_UNAVAILABLE"
        assert page_of(server)['dnc_errors_total{reason="STORE_UNAVAILABLE",worker="0"}'] == 3
        position = 6
        while True:  # gRPC has noticed by then or not
            talk.send(other, 3, request_id=4)
            talk.send(mine, position)
            position += 3
            told = {one.WhichOneof("message"): one for one in (talk.receive(), talk.receive())}
            assert told["chunk"].chunk.position
            if "error" not in told:
                break
        assert talk.end() == []
        assert step(server, mine) == position + 1
        assert step(server, other) == 7
        assert page_of(server)['dnc_worker_up{worker="1"}'] == 1
        assert server.stop() == 0
    assert server.log.count("serves again") == 1


@pytest.mark.usefixtures("history")
def test_a_worker_that_drains_takes_nobody_else_s_sessions_along(small_artifact: Path, tmp_path: Path) -> None:
    with talking(small_artifact, tmp_path) as (server, talk, mine, other):
        server.worker_of(1).terminate()
        position, waiting = 3, True
        while waiting:  # its own sessions are served all the while, and the other one's again when it is back
            talk.send(mine, position)
            talk.send(other, 3)
            position += 3
            told = {one.WhichOneof("message"): one for one in (talk.receive(), talk.receive())}
            assert told["chunk"].chunk.position
            waiting = "error" in told
        assert talk.end() == []
        assert step(server, mine) == position + 1
        assert step(server, other) == 7
        assert server.stop() == 0


@pytest.mark.usefixtures("history")
def test_our_client_streams_on_through_kills(small_artifact: Path, tmp_path: Path) -> None:
    names, chunks = [named(0), named(1)], [inputs(number, 2) for number in range(300)]
    outputs: dict[str, list[Any]] = {}
    turns = {name: threading.Event() for name in names}
    resumed = threading.Event()

    def stream(client: Client, name: str) -> None:
        def fed() -> Iterator[Float32]:
            for number, one in enumerate(chunks):
                if number == 150:
                    turns[name].set()
                    resumed.wait(PATIENCE_S)
                yield one

        with client.session(name) as session:
            outputs[name] = [one.tolist() for one in session.stream(fed())]

    with running(small_artifact, tmp_path, *TWO) as server, ThreadPoolExecutor() as threads:
        with Client(server.grpc, timeout_s=PATIENCE_S) as client:
            streams = {name: threads.submit(stream, client, name) for name in names}
            for name, turn in turns.items():
                wait_until(lambda: turn.is_set() or streams[name].done(), "half of it is streamed")  # noqa: B023
            server.worker_of(1).kill()
            resumed.set()
            for streaming in streams.values():
                streaming.result(PATIENCE_S)
            assert outputs[names[0]] == outputs[names[1]]
            assert len(outputs[names[0]]) == len(chunks)
            wait_until(lambda: "a worker serves again" in server.log, "it is back")
            with client.session(names[1]) as session:
                assert session.position == 600
        for worker in (0, 1):
            server.worker_of(worker).kill()
        wait_until(lambda: server.log.count("a worker serves again") == 3, "both are back")
        for name in names:
            assert step(server, name) == 601


def test_another_number_of_workers_finds_all_sessions(small_artifact: Path, tmp_path: Path) -> None:
    names = sorted(f"wanderer-{number}" for number in range(12))
    for starts, workers in enumerate((1, 3, 2, 1)):
        flags = ("--runtime", "plain", "--workers", str(workers))
        with running(small_artifact, tmp_path, *flags) as server, Client(server.grpc) as client:
            assert [info.id for info in client.sessions()] == (names if starts else [])
            for name in names:
                with client.session(name) as session:
                    assert session.created == (starts == 0)
                    assert session.position == starts
                    session.step(inputs(starts, 1))
                    if starts:
                        assert session.info().earliest_position == 0
            assert [info.id for info in client.sessions(page_size=5)] == names


# What a token may have, and what is refused.


def test_a_token_s_sessions_are_counted_over_all_workers(small_artifact: Path, tmp_path: Path) -> None:
    token = secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[[token]]\nname = "ward"\nsha256 = "{digest}"\nmax_sessions = 3\n')
    how = {"metadata": (("authorization", f"Bearer {token}"),), "timeout": PATIENCE_S}
    with running(small_artifact, tmp_path, *TWO, "--tokens", str(tokens)) as server:
        channel = grpc.insecure_channel(server.grpc, options=DIRECTLY)
        stub = dnc_pb2_grpc.DncServiceStub(channel)
        with channel:
            for owner in (0, 1, 1):
                stub.CreateSession(pb.CreateSessionRequest(session_id=named(owner)), **how)
            for owner in (0, 1):
                with refused("SESSION_LIMIT", grpc.StatusCode.RESOURCE_EXHAUSTED):
                    stub.CreateSession(pb.CreateSessionRequest(session_id=named(owner)), **how)
            listed = stub.ListSessions(pb.ListSessionsRequest(), **how).sessions
            assert len(listed) == 3
            stub.DeleteSession(pb.DeleteSessionRequest(session_id=listed[0].session_id), **how)
            stub.CreateSession(pb.CreateSessionRequest(session_id=named(0)), **how)
            for request in (pb.ListSessionsRequest(), pb.GetSessionRequest(session_id=listed[1].session_id)):
                call = stub.ListSessions if isinstance(request, pb.ListSessionsRequest) else stub.GetSession
                with refused("UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED):
                    call(request, timeout=PATIENCE_S)
            parts: SimpleQueue[pb.ImportSessionRequest | None] = SimpleQueue()  # of which none comes
            with refused("UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED):
                stub.ImportSession(iter(parts.get, None), timeout=PATIENCE_S)
            parts.put(None)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--workers", "2"], "workers is 2 and runtime is 'torchserve'; expected plain"),
        ([*TWO, "--store", "redis://localhost"], "workers is 2; expected 1 with a shared store"),
        ([*TWO, "--http-port", "0"], "http_port is 0 and workers is 2; expected 1"),
        (["--workers", "0"], "workers is '0' (--workers); expected auto, or a number from 1 to 64"),
        (["--workers", "many"], "workers is 'many' (--workers); expected auto, or a number from 1 to 64"),
    ],
)
def test_what_does_not_go_together(small_artifact: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    code, printed, told = failed_start(small_artifact, tmp_path, *flags)
    assert (code, printed) == (2, "")
    assert said in told


def test_a_second_machine_is_refused_the_port_and_the_folder(
    machine: Server, small_artifact: Path, tmp_path: Path
) -> None:
    port = machine.grpc.rpartition(":")[2]
    code, _, told = failed_start(small_artifact, tmp_path, *TWO, "--port", port)
    assert code == 1
    assert f"something listens already at {port} (port)" in told
    for workers in ("1", "2", "3"):
        flags = ("--runtime", "plain", "--workers", workers, "--state-dir", str(machine.folder / "state"))
        code, _, told = failed_start(small_artifact, tmp_path, *flags, "--port", "0", "--metrics-port", "0")
        assert code == 1
        assert "is in use by the server with process id" in told


def test_workers_that_cannot_start_tell_why_once(tmp_path: Path, small_artifact: Path) -> None:
    broken = tmp_path / "artifact"
    broken.mkdir()
    for name in ("manifest.json", "model.pt"):
        (broken / name).write_bytes((small_artifact / name).read_bytes()[:100])
    code, printed, told = failed_start(broken, tmp_path, *TWO)
    assert (code, printed) == (1, "")
    assert told.startswith("dnc serve: ")
