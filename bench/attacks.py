"""Hostile input at a server's endpoints. Each kind goes on for some seconds, in a process of its own.

Nothing of it is ever stepped: a chunk names an incarnation that no session has, or was applied before. So what the
server's histogram of the queue wait counts meanwhile are the chunks of whoever behaves well.
"""

import asyncio
import json
import random
import resource
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import grpc
import numpy as np

from bench.unary import PREDICTIONS, predictions
from dnc_serve.client.cli.load import STREAM, array_of, run_loop
from dnc_serve.handler.api.call_json import MAX_BYTES, MAX_VALUES
from dnc_serve.handler.torchserve.archive import MODEL_NAME
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.targets import channel_options

SERVICE = "/dnc.v1.DncService"
METHODS = (
    "CreateSession", "GetSession", "ListSessions", "DeleteSession", "Step", "ResetSession", "ForkSession", "GetModel",
)  # fmt: skip
VICTIMS = ("victim", "victim-2", "json")
SILENT_CONNECTIONS = 1000
IN_FLIGHT = 32
NO_INCARNATION = 1  # those that servers draw are 64 random bits
WIDE_TIMESTEPS = 200
DEAF_STREAMS = 16
HELD_UP_S = 0.1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000000040000000000")

Call = tuple[str, bytes, tuple[tuple[str, str], ...]]  # method, body, metadata


@dataclass(frozen=True)
class Endpoints:
    """Where to throw it."""

    grpc: str
    torchserve_grpc: str
    input_size: int
    max_message_bytes: int = 4 << 20


# What is thrown.


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


def valid_messages(input_size: int) -> dict[str, bytes]:
    """A request for each method, on the victims' sessions or such as aren't there."""
    chunk = chunk_of("victim-2", 3, input_size, position=0, incarnation=NO_INCARNATION)
    reset = pb.Reset(session_id="victim-2", position=3, experience=1)
    fork = pb.ForkSessionRequest(session_id="victim", fork_session_id="victim-5", position=1)
    return {
        "CreateSession": pb.CreateSessionRequest(session_id="victim-3", allow_existing=True).SerializeToString(),
        "GetSession": pb.GetSessionRequest(session_id="victim").SerializeToString(),
        "ListSessions": pb.ListSessionsRequest(page_size=10, prefix="v", page_token="v").SerializeToString(),
        "DeleteSession": pb.DeleteSessionRequest(session_id="victim-4", incarnation=3).SerializeToString(),
        "Step": pb.StepRequest(chunk=chunk).SerializeToString(),
        "ResetSession": pb.ResetSessionRequest(reset=reset).SerializeToString(),
        "ForkSession": fork.SerializeToString(),
        "GetModel": b"",
    }


def valid_rows(input_size: int) -> tuple[bytes, bytes]:
    """A step for TorchServe's endpoint, as JSON and as protobuf."""
    step = {"session_id": "json", "inputs": [[1.0] * input_size], "position": 0, "incarnation": str(NO_INCARNATION)}
    chunk = chunk_of("json", 1, input_size, position=0, incarnation=NO_INCARNATION)
    return json.dumps({"step": step}).encode(), pb.Call(step=pb.StepRequest(chunk=chunk)).SerializeToString()


def chunk_of(session_id: str, timesteps: int, input_size: int, **options: Any) -> pb.Chunk:
    """A chunk of ones."""
    return pb.Chunk(session_id=session_id, inputs=array_of(np.ones((timesteps, input_size), np.float32)), **options)


def row(body: bytes) -> Call:
    """A call of TorchServe's with this body."""
    return PREDICTIONS, predictions(MODEL_NAME, data=body), ()


def cut_frame(number: int, chance: random.Random) -> bytes:
    """An opening of HTTP/2, of HTTP/1 or none, and noise; the connection is then cut."""
    opening = (b"", PREFACE, PREFACE + SETTINGS, b"GET / HTTP/1.1\r\n\r\n")[number % 4]
    return opening + chance.randbytes(chance.randint(0, 200))


def absurd_metadata() -> Iterator[tuple[tuple[str, str], ...]]:
    """Metadata that no server should take."""
    yield (("x-dnc-session", "s" * 60_000),)
    yield tuple((f"x-{number}", "v" * 50) for number in range(1000))


@contextmanager
def silent_connections(address: str) -> Iterator[list[socket.socket]]:
    """A thousand connections that say nothing."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with ExitStack() as stack:
        yield [stack.enter_context(_connection(address)) for _ in range(SILENT_CONNECTIONS)]


# Throwing it: each returns how many calls, messages or connections there were.


def mutated_calls(at: Endpoints, seconds: float) -> int:
    """Mutated protobuf messages of every method, many at once."""
    valid, chance = valid_messages(at.input_size), random.Random(1)

    def draw() -> Call:
        method = chance.choice(METHODS)
        return f"{SERVICE}/{method}", mutated(valid[method], chance), ()

    return throw(at.grpc, draw, seconds)


def mutated_rows(at: Endpoints, seconds: float) -> int:
    """Mutated JSON and protobuf at TorchServe's endpoint, many at once."""
    valid, chance = valid_rows(at.input_size), random.Random(3)
    return throw(at.torchserve_grpc, lambda: row(mutated(chance.choice(valid), chance)), seconds)


def large_json(at: Endpoints, seconds: float) -> int:
    """Bodies at TorchServe's endpoint: of several times the size that is read, and of as many numbers as are read."""
    opening = b'{"step":{"session_id":"json","position":0,"incarnation":"1","inputs":['
    values, too_many = (b"[0.123456,0.123456]," * count for count in (MAX_VALUES // 2 - 100, MAX_BYTES // 5))
    rows = cycle([row(opening + values + b"[0,0]]}}"), row(opening + too_many)])
    return throw(at.torchserve_grpc, lambda: next(rows), seconds, at_once=2)


def absurd_sizes(at: Endpoints, seconds: float) -> int:
    """Messages beyond the limit, metadata beyond the limit, and messages just below it of a million empty parts."""
    # Two bytes for each request of a batch: its tag, and a length of zero.
    parts = pb.RequestBatch.FromString(b"\x0a\x00" * (at.max_message_bytes // 2 - 64))
    step = f"{SERVICE}/Step"
    calls: list[Call] = [
        (step, bytes(at.max_message_bytes + 1), ()),
        *((step, b"", metadata) for metadata in absurd_metadata()),
        (STREAM, pb.StreamRequest(batch=parts).SerializeToString(), ()),
    ]
    each = cycle(calls)
    return throw(at.grpc, lambda: next(each), seconds, at_once=1)


def throw(address: str, draw: Callable[[], Call], seconds: float, at_once: int = IN_FLIGHT) -> int:
    """Calls, each followed by another as soon as it is answered, whatever the answer is."""

    async def attack(channel: Any, until: float) -> int:
        async def again_and_again() -> int:
            thrown = 0
            while time.monotonic() < until:
                method, body, metadata = draw()
                rest_s = max(0.0, until - time.monotonic())  # who takes one answer of several may never see the end
                with suppress(grpc.RpcError):
                    await channel.unary_unary(method)(body, metadata=metadata, timeout=rest_s)
                thrown += 1
            return thrown

        return sum(await asyncio.gather(*(again_and_again() for _ in range(at_once))))

    return _on_channel(address, attack, seconds)


def mutated_stream(at: Endpoints, seconds: float) -> int:
    """Mutated protobuf messages on one stream; each answer is read."""
    chunk = chunk_of("victim-2", 2, at.input_size, position=0, incarnation=NO_INCARNATION)
    valid, chance = pb.StreamRequest(chunk=chunk).SerializeToString(), random.Random(2)

    async def attack(channel: Any, until: float) -> int:
        stream, answered = channel.stream_stream(STREAM)(), 0
        for _ in range(IN_FLIGHT):
            await stream.write(mutated(valid, chance))
        while time.monotonic() < until:
            await stream.read()
            answered += 1
            await stream.write(mutated(valid, chance))
        return answered

    return _on_channel(at.grpc, attack, seconds)


def deaf_readers(at: Endpoints, seconds: float) -> int:
    """Streams that ask for wide answers, which the server has at hand, and never read one."""

    async def attack(channel: Any, until: float) -> int:
        sent, streams = 0, list[Any]()
        stub: Any = dnc_pb2_grpc.DncServiceStub(channel)
        await stub.CreateSession(pb.CreateSessionRequest(session_id="deaf", allow_existing=True))
        chunk = chunk_of("deaf", WIDE_TIMESTEPS, at.input_size, position=0)
        await stub.Step(pb.StepRequest(chunk=chunk))
        message = pb.StreamRequest(chunk=chunk).SerializeToString()
        while time.monotonic() < until:
            if len(streams) == DEAF_STREAMS:
                for stream in streams:
                    stream.cancel()
                streams = []
            streams.append(channel.stream_stream(STREAM)())
            with suppress(TimeoutError):
                while time.monotonic() < until:
                    await asyncio.wait_for(asyncio.shield(streams[-1].write(message)), HELD_UP_S)
                    sent += 1
        return sent

    return _on_channel(at.grpc, attack, seconds)


def cut_frames(at: Endpoints, seconds: float) -> int:
    """Connections that are cut within a frame, or send noise."""
    chance, thrown, until = random.Random(5), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        with _connection(at.grpc) as connection, suppress(OSError):
            connection.sendall(cut_frame(thrown, chance))
        thrown += 1
    return thrown


def silence(at: Endpoints, seconds: float) -> int:
    """A thousand connections that say nothing."""
    with silent_connections(at.grpc) as connections:
        time.sleep(seconds)
        return len(connections)


ATTACKS: dict[str, Callable[[Endpoints, float], int]] = {
    "mutated protobuf calls": mutated_calls,
    "mutated messages on a stream": mutated_stream,
    "mutated JSON and protobuf at TorchServe's endpoint": mutated_rows,
    "large JSON at TorchServe's endpoint": large_json,
    "absurd sizes": absurd_sizes,
    "cut frames": cut_frames,
    "1,000 silent connections": silence,
    "readers that never read": deaf_readers,
}


def _on_channel(address: str, attack: Callable[[Any, float], Coroutine[Any, Any, int]], seconds: float) -> int:
    async def run() -> int:
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        options = [*unlimited, *channel_options(address)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            return await attack(channel, time.monotonic() + seconds)

    return run_loop(run())


def _connection(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)
