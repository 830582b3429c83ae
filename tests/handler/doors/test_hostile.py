"""Hostile input at the real doors: each gets its error or a closed connection; a well-behaved stream beside it loses
nothing."""

import asyncio
import json
import random
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from ts.context import Context, RequestProcessor

from dnc_serve.client import Client
from dnc_serve.handler.doors.native import answer
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, chunk, open_door
from tests.handler.harness import INPUT_SIZE, random_inputs
from tests.handler.scrape import scrape

MUTATIONS = 10_000
METHODS = (
    "CreateSession", "GetSession", "ListSessions", "DeleteSession", "Step", "ResetSession", "ForkSession", "GetModel",
)  # fmt: skip


@pytest.fixture(scope="module")
def door(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(artifact_folder, tmp_path_factory.mktemp("state"), max_message_bytes=100_000) as door:
        yield door


@contextmanager
def well_behaved(door: Door) -> Iterator[None]:
    """A client that streams while the rest goes on; afterwards its outputs must be those of a session left in peace."""
    inputs = random_inputs(0, 5)
    stop, outputs, failures = threading.Event(), [], []

    def stream() -> None:
        try:
            with Client(door.addresses.grpc) as client, client.session() as session:
                while not stop.is_set() or not outputs:
                    outputs.append(session.step(inputs))
        except Exception as exc:
            failures.append(exc)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=60)
    assert not failures, failures
    with Client(door.addresses.grpc) as client, client.session() as session:
        for number, expected in enumerate(outputs):
            assert np.array_equal(session.step(inputs), expected), number


def mutated(message: bytes, chance: random.Random) -> bytes:
    """The message with bits flipped, parts cut out, doubled, or replaced by noise."""
    mutation = bytearray(message)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(mutation) + 1)
        match chance.randrange(5):
            case 0 if mutation:
                mutation[at % len(mutation)] ^= 1 << chance.randrange(8)
            case 1:
                del mutation[at : at + chance.randint(1, 8)]
            case 2:
                mutation[at:at] = chance.randbytes(chance.randint(1, 8))
            case 3:
                mutation[at:at] = mutation[at : at + chance.randint(1, 40)]
            case _:
                mutation[at:at] = b"\xff" * 9 + b"\x7f"  # a length or number that is absurd
    return bytes(mutation)


def valid_messages() -> dict[str, bytes]:
    good = chunk("victim-2", random_inputs(0, 3), position=0, incarnation=1)
    return {
        "CreateSession": pb.CreateSessionRequest(session_id="victim-3", allow_existing=True).SerializeToString(),
        "GetSession": pb.GetSessionRequest(session_id="victim").SerializeToString(),
        "ListSessions": pb.ListSessionsRequest(page_size=10, prefix="v", page_token="v").SerializeToString(),
        "DeleteSession": pb.DeleteSessionRequest(session_id="victim-4", incarnation=3).SerializeToString(),
        "Step": pb.StepRequest(chunk=good).SerializeToString(),
        "ResetSession": pb.ResetSessionRequest(
            reset=pb.Reset(session_id="victim-2", position=3, experience=1)
        ).SerializeToString(),
        "ForkSession": pb.ForkSessionRequest(
            session_id="victim", fork_session_id="victim-5", position=1
        ).SerializeToString(),
        "GetModel": b"",
    }


def test_mutated_protobuf_at_the_streaming_door(door: Door) -> None:
    door.create("victim")
    door.step("victim", random_inputs(3, 4))
    before = door.dump("victim")
    door.create("victim-2")
    chance, valid = random.Random(1), valid_messages()
    allowed = {
        grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED, grpc.StatusCode.OUT_OF_RANGE,
    }  # fmt: skip

    async def attack() -> dict[str, int]:
        seen: dict[str, int] = {}
        async with grpc.aio.insecure_channel(door.addresses.grpc) as channel:
            calls = {method: channel.unary_unary(f"/dnc.v1.DncService/{method}") for method in METHODS}

            async def one(method: str, body: bytes) -> None:
                try:
                    await calls[method](body, timeout=TIMEOUT)
                    code = "OK"
                except grpc.RpcError as exc:
                    assert exc.code() in allowed, (method, body, exc)
                    code = exc.code().name
                seen[code] = seen.get(code, 0) + 1

            for _ in range(MUTATIONS // 100):
                methods = [chance.choice(METHODS) for _ in range(100)]
                await asyncio.gather(*(one(method, mutated(valid[method], chance)) for method in methods))
        return seen

    with well_behaved(door):
        seen = asyncio.run(attack())
    assert sum(seen.values()) == MUTATIONS
    assert len(seen) > 3, seen
    after = door.dump("victim")
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


def test_mutated_messages_on_a_stream(door: Door) -> None:
    chance = random.Random(2)
    good = pb.StreamRequest(chunk=chunk("nobody", random_inputs(0, 2), position=0)).SerializeToString()
    stream = door.channel.stream_stream("/dnc.v1.DncService/Stream")
    with well_behaved(door):
        for _ in range(200):
            answers = list(stream(iter([mutated(good, chance) for _ in range(20)]), timeout=TIMEOUT))
            assert len(answers) == 20
            assert {pb.StreamResponse.FromString(one).WhichOneof("message") for one in answers} == {"error"}


def test_mutated_rows_at_torchserves_door(door: Door) -> None:
    chance = random.Random(3)
    door.create("json")
    as_json = json.dumps({"step": {"session_id": "json", "inputs": [[1.0] * INPUT_SIZE], "position": 0}}).encode()
    as_protobuf = pb.Call(step=pb.StepRequest(chunk=chunk("json", random_inputs(0, 1)))).SerializeToString()
    with well_behaved(door):
        for start in range(0, MUTATIONS, 500):
            rows: list[dict[str, Any]] = [
                {"body": mutated(chance.choice((as_json, as_protobuf)), chance)}
                for _ in range(min(500, MUTATIONS - start))
            ]
            context = Context("dnc", None, {}, len(rows), None, None)
            context.request_processor = [RequestProcessor({}) for _ in rows]
            answers = answer(lambda calls: door.server.call(calls, 30.0), rows, context)
            assert len(answers) == len(rows)


def test_messages_and_metadata_of_absurd_size(door: Door) -> None:
    call = door.channel.unary_unary("/dnc.v1.DncService/Step")
    with well_behaved(door):
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(200_000), timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for metadata in ((("x-dnc-session", "s" * 60_000),), tuple((f"x-{n}", "v" * 50) for n in range(1000))):
            with pytest.raises(grpc.RpcError):
                call(b"", metadata=metadata, timeout=TIMEOUT)
        odd = (
            ("x-dnc-session", "no such session"),
            ("authorization", "Bearer"),
            ("grpc-timeout-x", "-1"),
            ("x-bin", b"\xff\0"),
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=odd, timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_cut_frames_and_noise_on_the_wire(door: Door) -> None:
    host, _, port = door.addresses.grpc.rpartition(":")
    chance = random.Random(4)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = bytes.fromhex("000000040000000000")
    with well_behaved(door):
        for number in range(300):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                opening = (b"", preface, preface + settings, b"GET / HTTP/1.1\r\n\r\n")[number % 4]
                connection.sendall(opening + chance.randbytes(chance.randint(0, 200)))


def test_a_thousand_connections_that_say_nothing(door: Door) -> None:
    host, _, port = door.addresses.grpc.rpartition(":")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    connections = [socket.create_connection((host, int(port)), timeout=10) for _ in range(1000)]
    try:
        with well_behaved(door):
            door.create("among-the-silent")
    finally:
        for connection in connections:
            connection.close()


def test_a_reader_that_never_reads_holds_up_nobody(door: Door) -> None:
    door.create("deaf")
    wide = chunk("deaf", random_inputs(0, 200))
    sent = 0

    def messages() -> Iterator[pb.StreamRequest]:
        nonlocal sent
        while sent < 20_000:
            sent += 1
            yield pb.StreamRequest(chunk=wide)

    with well_behaved(door):
        call = door.stub.Stream(messages(), timeout=TIMEOUT)  # and not one answer is read
        door.create("beside-the-deaf")
        for _ in range(50):
            door.step("beside-the-deaf", random_inputs(0, 1))
        call.cancel()
    # Flow control stopped the sender: what is unanswered is bounded, by count.
    assert sent < 20_000
    assert scrape(door)["dnc_streams"] <= 1
