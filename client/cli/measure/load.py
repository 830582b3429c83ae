"""The load on a streaming door, through bare stubs: run in a process of its own, see `aside`.

An echo gets the same messages as a server, so that their difference is what the server does.
"""

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
import uvloop

from dnc_serve.client.cli.measure.lockstep import Clock, Figures, Span, lockstep
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.targets import channel_options

STREAM = "/dnc.v1.DncService/Stream"
# A StreamResponse that holds a chunk's result begins with this tag; so does a StreamRequest with a chunk, which an echo
# gives back.
CHUNK_TAG = b"\x0a"
CREATED_AT_ONCE = 64

Result = TypeVar("Result")


@dataclass(frozen=True)
class Load:
    """Who calls, and with what.

    - `streams`: the sessions of each stream; on each, `in_flight` of them, chosen at random, wait for an answer.
    - `chunk`: timesteps [T] of one message.
    - `is_echo`: the address is that of an echo, which has no sessions.
    """

    address: str
    streams: tuple[tuple[str, ...], ...]
    chunk: int
    input_size: int
    span: Span
    in_flight: int = 1
    is_echo: bool = False


def own_streams(sessions: int, prefix: str = "s") -> tuple[tuple[str, ...], ...]:
    """A stream for each session."""
    return tuple((f"{prefix}{i}",) for i in range(sessions))


def shared_streams(sessions: int, streams: int, prefix: str = "s") -> tuple[tuple[str, ...], ...]:
    """Sessions dealt out to streams."""
    return tuple(tuple(f"{prefix}{i}" for i in range(first, sessions, streams)) for first in range(streams))


def stream_load(load: Load) -> Figures:
    """Lockstep for each session: one chunk under way at a time."""
    return run_loop(_stream_load(load))


def run_loop(work: "Coroutine[Any, Any, Result]") -> Result:
    """Runs to the end on a fresh uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


class Talker:
    """One session as its messages see it."""

    def __init__(self, session: pb.Session, inputs: np.ndarray[Any, Any]) -> None:
        self._timesteps = len(inputs)
        array = pb.Array(shape=inputs.shape, data=inputs.tobytes(), dtype=pb.DATA_TYPE_FLOAT32)
        self._request = pb.StreamRequest(
            chunk=pb.Chunk(
                session_id=session.session_id,
                incarnation=session.incarnation,
                position=session.position,
                inputs=array,
            )
        )
        self._next_position = int(session.position)
        self.asked_at = 0.0

    @property
    def session_id(self) -> str:
        return str(self._request.chunk.session_id)

    @property
    def position(self) -> int:
        """Where the session stands after what was asked for."""
        return self._next_position

    def ask(self) -> pb.StreamRequest:
        """The next chunk; to be sent before the next is asked for."""
        self._request.chunk.position = self._next_position
        self._next_position += self._timesteps
        self.asked_at = time.perf_counter()
        return self._request


async def _stream_load(load: Load) -> Figures:
    async with grpc.aio.insecure_channel(load.address, options=channel_options(load.address)) as channel:
        names = [name for names in load.streams for name in names]
        found = [pb.Session(session_id=name) for name in names] if load.is_echo else await sessions_of(channel, names)
        inputs = bits(load.chunk, load.input_size)
        talkers = {session.session_id: Talker(session, inputs) for session in found}
        clock = Clock(load.span, load.in_flight * len(load.streams))
        open_stream: Any = channel.stream_stream(STREAM)
        loops = [_converse(open_stream(), [talkers[name] for name in names], load, clock) for names in load.streams]
        await asyncio.gather(*loops)
        if not load.is_echo:
            await _check_positions(channel, talkers)
        return clock.figures(load.chunk)


async def _converse(stream: Any, talkers: Sequence[Talker], load: Load, clock: Clock) -> None:
    """Keeps `in_flight` chunks of different sessions under way until the time is over; what can be sent together is."""
    idle = list(talkers)
    random.shuffle(idle)
    by_id = {talker.session_id: talker for talker in talkers}
    asked: list[Talker] = []
    under_way = 0
    while True:
        requests = []
        while under_way < load.in_flight and not clock.over:
            asked = [idle.pop(random.randrange(len(idle)))]
            requests.append(asked[0].ask())
            under_way += 1
        if requests:
            await stream.write(_one_message(requests))
        if not under_way:
            break
        reply = await stream.read()
        if load.in_flight > 1:
            asked = [by_id[session_id] for session_id in _answered(reply, load.is_echo)]
        elif not isinstance(reply, bytes) or not reply.startswith(CHUNK_TAG):
            raise RuntimeError(f"the server refused a chunk: {pb.StreamResponse.FromString(reply)}")
        under_way -= len(asked)
        for talker in asked:
            clock.called(talker.asked_at)
        idle += asked
    await stream.done_writing()
    await stream.read()


def _one_message(requests: Sequence[pb.StreamRequest]) -> bytes:
    together = requests[0] if len(requests) == 1 else pb.StreamRequest(batch=pb.RequestBatch(requests=requests))
    message: bytes = together.SerializeToString()
    return message


def _answered(reply: bytes, is_echo: bool) -> list[str]:
    """The sessions that a reply answers; an echo says what it was told. Raises RuntimeError for a refusal."""
    message: Any = (pb.StreamRequest if is_echo else pb.StreamResponse).FromString(reply)
    answers = [message]
    if message.WhichOneof("message") == "batch":
        answers = message.batch.requests if is_echo else message.batch.responses
    for answer in answers:
        if answer.WhichOneof("message") != "chunk":
            raise RuntimeError(f"the server refused a chunk: {answer}")
    return [answer.chunk.session_id for answer in answers]


async def _check_positions(channel: grpc.aio.Channel, talkers: dict[str, Talker]) -> None:
    """Raises RuntimeError unless every session stands where all that it was asked has been applied."""
    for session in await sessions_of(channel, list(talkers)):
        if session.position != talkers[session.session_id].position:
            expected = talkers[session.session_id].position
            raise RuntimeError(f"session {session.session_id} stands at {session.position}, expected {expected}")


async def sessions_of(channel: grpc.aio.Channel, names: Sequence[str]) -> list[pb.Session]:
    """The sessions of these names, created where they aren't there."""
    create = dnc_pb2_grpc.DncServiceStub(channel).CreateSession
    found: list[pb.Session] = []
    for start in range(0, len(names), CREATED_AT_ONCE):
        requests = [
            pb.CreateSessionRequest(session_id=name, allow_existing=True)
            for name in names[start : start + CREATED_AT_ONCE]
        ]
        answers = await asyncio.gather(*(create(request) for request in requests))
        found += [answer.session for answer in answers]
    return found


def step_each(address: str, sessions: Sequence[str], chunk: int, input_size: int) -> float:
    """One chunk for each session, all under way at once on one stream; seconds until the last answer.

    Whether they are there already is not asked: the chunks name no position.
    """

    async def step() -> float:
        inputs = bits(chunk, input_size)
        array = pb.Array(shape=inputs.shape, data=inputs.tobytes(), dtype=pb.DATA_TYPE_FLOAT32)
        async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
            stream: Any = channel.stream_stream(STREAM)()
            started = time.perf_counter()

            async def write() -> None:
                for name in sessions:
                    request = pb.StreamRequest(chunk=pb.Chunk(session_id=name, inputs=array))
                    await stream.write(request.SerializeToString())
                await stream.done_writing()

            writer = asyncio.create_task(write())
            for _ in sessions:
                reply = await stream.read()
                if not isinstance(reply, bytes) or not reply.startswith(CHUNK_TAG):
                    raise RuntimeError(f"the server refused a chunk: {pb.StreamResponse.FromString(reply)}")
            await writer
            return time.perf_counter() - started

    return run_loop(step())


def create(address: str, sessions: Sequence[str]) -> None:
    """Makes sessions that are not there."""

    async def make() -> None:
        async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
            await sessions_of(channel, sessions)

    run_loop(make())


def model_of(address: str) -> tuple[int, str, str, str]:
    """Of the served model: input size, name, kind of artifact, device."""
    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        model = dnc_pb2_grpc.DncServiceStub(channel).GetModel(pb.GetModelRequest(), timeout=30)
        return model.input_size, model.name, model.artifact, model.device


def client_load(address: str, session_id: str, chunk: int, input_size: int, span: Span) -> Figures:
    """A lone session through the client library, one `step` after the other."""
    from dnc_serve.client import AsyncClient

    async def load() -> Figures:
        inputs = bits(chunk, input_size)
        async with AsyncClient(address) as client, client.session(session_id) as session:
            return await lockstep([lambda: session.step(inputs)], chunk, span)

    return run_loop(load())


def bits(timesteps: int, input_size: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Random bits [T, I], always the same."""
    return np.random.default_rng(7).integers(0, 2, (timesteps, input_size)).astype(np.float32)
