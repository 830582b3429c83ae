"""Hostile input at the real doors: each gets its error or a closed connection; a well-behaved stream beside it loses
nothing."""

import asyncio
import random
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

from bench.attacks import (
    METHODS,
    absurd_metadata,
    cut_frame,
    mutated,
    silent_connections,
    valid_messages,
    valid_rows,
)
from dnc_serve.client import Client
from dnc_serve.handler.api.call_json import call_from_json
from dnc_serve.handler.api.torchserve_calls import answer
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, chunk, open_door
from tests.handler.harness import INPUT_SIZE, random_inputs
from tests.handler.scrape import scrape
from tests.waiting import PATIENCE_S, wait_until

MUTATIONS, MUTATIONS_IN_SHORT = 20_000, 2_000
mutations = pytest.mark.parametrize("count", [MUTATIONS_IN_SHORT, pytest.param(MUTATIONS, marks=pytest.mark.long)])


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
        thread.join()
    assert not failures, failures
    with Client(door.addresses.grpc) as client, client.session() as session:
        for number, expected in enumerate(outputs):
            assert np.array_equal(session.step(inputs), expected), number


@mutations
def test_mutated_protobuf_at_the_streaming_door(door: Door, count: int) -> None:
    for session_id in ("victim", "victim-2"):
        door.stub.CreateSession(pb.CreateSessionRequest(session_id=session_id, allow_existing=True), timeout=TIMEOUT)
    door.step("victim", random_inputs(3, 4))
    before = door.dump("victim")
    chance, valid = random.Random(1), valid_messages(INPUT_SIZE)
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

            for _ in range(count // 100):
                methods = [chance.choice(METHODS) for _ in range(100)]
                await asyncio.gather(*(one(method, mutated(valid[method], chance)) for method in methods))
        return seen

    with well_behaved(door):
        seen = asyncio.run(attack())
    assert sum(seen.values()) == count
    assert len(seen) > 3, seen
    after = door.dump("victim")
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


@mutations
def test_mutated_messages_on_a_stream(door: Door, count: int) -> None:
    chance = random.Random(2)
    good = pb.StreamRequest(chunk=chunk("nobody", random_inputs(0, 2), position=0)).SerializeToString()
    stream = door.channel.stream_stream("/dnc.v1.DncService/Stream")
    with well_behaved(door):
        for _ in range(count // 20):
            answers = list(stream(iter([mutated(good, chance) for _ in range(20)]), timeout=TIMEOUT))
            assert len(answers) == 20
            assert {pb.StreamResponse.FromString(one).WhichOneof("message") for one in answers} == {"error"}


@mutations
def test_mutated_rows_at_torchserves_door(door: Door, count: int) -> None:
    chance = random.Random(3)
    door.stub.CreateSession(pb.CreateSessionRequest(session_id="json", allow_existing=True), timeout=TIMEOUT)
    valid = valid_rows(INPUT_SIZE)
    with well_behaved(door):
        for _ in range(count // 500):
            rows: list[dict[str, Any]] = [{"body": mutated(chance.choice(valid), chance)} for _ in range(500)]
            context = Context("dnc", None, {}, len(rows), None, None)
            context.request_processor = [RequestProcessor({}) for _ in rows]
            answers = answer(lambda calls: door.server.call(calls, PATIENCE_S), rows, context)
            assert len(answers) == len(rows)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b'{"step":{"session_id":"' + bytes(5 << 20), "bytes"),
        (b'{"step":{"session_id":"json","inputs":[[' + b"1," * 200_000 + b"1]]}}", "values"),
        (b'{"dump_memory":{"session_id":"json","names":[' + b'"a",' * 5000 + b'"a"]}}', "values beside"),
        (b'{"step":' * 100_000, "not JSON"),
    ],
)
def test_json_that_would_hold_up_the_process_is_refused(payload: bytes, said: str) -> None:
    with pytest.raises(ServeError, match=said) as caught:
        call_from_json(payload)
    assert caught.value.reason == "BAD_REQUEST"


def test_json_with_as_many_numbers_as_a_chunk_may_have_is_read() -> None:
    rows = ",".join(["[0.12345678,1,0,1,0,1,0,1,0,1]"] * 4096)
    call = call_from_json(f'{{"step":{{"session_id":"json","inputs":[{rows}]}}}}'.encode())
    assert list(call.step.chunk.inputs.shape) == [4096, 10]


def test_messages_and_metadata_of_absurd_size(door: Door) -> None:
    call = door.channel.unary_unary("/dnc.v1.DncService/Step")
    with well_behaved(door):
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(200_000), timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for metadata in absurd_metadata():
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
    with well_behaved(door):
        for number in range(300):
            with socket.create_connection((host, int(port)), timeout=TIMEOUT) as connection:
                connection.sendall(cut_frame(number, chance))


def test_a_thousand_connections_that_say_nothing(door: Door) -> None:
    with silent_connections(door.addresses.grpc), well_behaved(door):
        door.create("among-the-silent")


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
    wait_until(lambda: scrape(door)["dnc_streams"] == 0, "all streams are closed")
    # That a reader went away is no mistake of the server's.
    assert scrape(door)["dnc_errors_total", "INTERNAL"] == 0
