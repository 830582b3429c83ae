"""Load on a streaming endpoint, by bare stubs on one event loop, and what its callers see.

It is to be put on a server from a process that does nothing else. An echo gets the same messages as a server, so that
their difference is what the server does.
"""

import asyncio
import atexit
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np

from dnc_serve.client.tls import TLS
from dnc_serve.client.transport import Hosts, Token
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc

STREAM = "/dnc.v1.DncService/Stream"
# A StreamResponse that holds a chunk's result begins with this tag; so does a StreamRequest with a chunk, which an echo
# gives back.
CHUNK_TAG = b"\x0a"
AT_ONCE = 64  # calls that make or delete sessions
LONGER_AT_MOST_S = 30.0

Result = TypeVar("Result")
Exchange = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Span:
    """What is measured: `seconds` of calls, after `warm_up_s` that are not counted."""

    seconds: float
    warm_up_s: float = 0.0


@dataclass(frozen=True)
class Figures:
    """What callers saw: milliseconds of a call, timesteps a second of all, and what a call cost the server."""

    calls: int
    p50_ms: float
    p99_ms: float
    timesteps_per_s: float
    server_us: float  # processor time; 0 if it isn't known which processes serve


@dataclass(frozen=True)
class Load:
    """Sessions dealt out to streams, and how each stream has them stepped, by chunks of some timesteps.

    lockstep  one chunk is under way, of a session chosen at random
    batch     one of each session; what can be sent together is one message
    each      one of each session, a message each, all sent before the first answer is read
    """

    sessions: int = 1
    streams: int = 1
    chunk: int = 1
    way: str = "lockstep"
    rounds: int = 0  # chunks of each session; 0 for as many as the time allows


LOADS: Mapping[str, Load] = {
    "lone stream": Load(),
    "2 streams": Load(2, 2),
    "8 streams": Load(8, 8),
    "64 streams": Load(64, 64),
    "64 streams, chunks of 16": Load(64, 64, 16),
    "a stream of 64 sessions in batches": Load(64, 1, 1, "batch"),
    "a stream of 64 sessions in batches, chunks of 16": Load(64, 1, 16, "batch"),
    "a stream of 64 sessions, a message each": Load(64, 1, 1, "each"),
    "8 streams of 8 sessions, a message each": Load(64, 8, 1, "each"),
}


@dataclass(frozen=True)
class Server:
    """What the load is put on. An echo knows no sessions."""

    address: str
    input_size: int
    token: Token | None = None
    tls: TLS | None = None
    pids: tuple[int, ...] = ()  # the processes that serve, if they run on this machine
    is_echo: bool = False


def run_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs to the end on the process' loop, a fast one if uvloop is there."""
    return _runner().run(work)


@cache
def _runner() -> asyncio.Runner:
    """One for all loads: gRPC wakes any loop of the process for what arrives, and what a closed one is told is lost."""
    factory = asyncio.new_event_loop
    with suppress(ImportError):
        factory = import_module("uvloop").new_event_loop
    runner = asyncio.Runner(loop_factory=factory)
    atexit.register(runner.close)
    return runner


def stream_load(
    server: Server, load: Load, span: Span, prefix: str = "s", keep: bool = True, named: Callable[[str], bool] = bool
) -> Figures:
    """What the callers see, of sessions named `prefix` and a number, of those that `named` lets be; they are deleted
    afterwards unless kept.

    Raises DncError, and RuntimeError for a chunk that was refused or applied other than once.
    """
    names = islice(filter(named, (f"{prefix}{index}" for index in count())), load.sessions)
    return run_loop(_stream_load(server, load, span, list(names), keep))


async def _stream_load(server: Server, load: Load, span: Span, names: Sequence[str], keep: bool) -> Figures:
    hosts = Hosts(server.address, server.token, server.tls)
    channel: Any = hosts.channel(server.address)
    stub, metadata = dnc_pb2_grpc.DncServiceStub(channel), hosts.metadata()

    async def sessions() -> list[pb.Session]:
        """As they stand; they are made where they aren't there."""
        if server.is_echo:
            return [pb.Session(session_id=name) for name in names]
        requests = [pb.CreateSessionRequest(session_id=name, allow_existing=True) for name in names]
        answers = await some_at_once(lambda request: stub.CreateSession(request, metadata=metadata), requests)
        return [answer.session for answer in answers]

    try:
        async with hosts.translated(server.address):
            inputs = array_of(bits(load.chunk, server.input_size))
            talkers = [Talker(session, inputs, load.rounds) for session in await sessions()]
            callers = load.streams if load.way == "lockstep" else load.sessions
            clock = Clock(Span(float("inf")) if load.rounds else span, callers, server.pids)
            streams = [channel.stream_stream(STREAM)(metadata=metadata) for _ in range(load.streams)]
            conversations = (
                _converse(stream, talkers[first :: load.streams], load.way, clock, server.is_echo)
                for first, stream in enumerate(streams)
            )
            await asyncio.gather(*conversations)
            for talker, session in zip(talkers, await sessions(), strict=True):
                if session.position != talker.position and not server.is_echo:
                    raise RuntimeError(f"{session.session_id} is at {session.position}, expected {talker.position}")
            if not keep:
                deletions = [pb.DeleteSessionRequest(session_id=name) for name in names]
                await some_at_once(lambda request: stub.DeleteSession(request, metadata=metadata), deletions)
    finally:
        await hosts.close()
    return clock.figures(load.chunk)


async def some_at_once(call: Callable[[Any], Awaitable[Any]], requests: Sequence[Any]) -> list[Any]:
    """The answers to calls."""
    answers: list[Any] = []
    for first in range(0, len(requests), AT_ONCE):
        answers += await asyncio.gather(*map(call, requests[first : first + AT_ONCE]))
    return answers


async def _converse(stream: Any, talkers: "Sequence[Talker]", way: str, clock: "Clock", is_echo: bool) -> None:
    """Keeps chunks of different sessions under way until the time is over, or each session has had its chunks."""
    idle = list(talkers)
    random.shuffle(idle)
    by_id = {talker.session_id: talker for talker in talkers}
    asked: list[Talker] = []
    under_way = 0
    while True:
        if idle and not clock.over and (way == "batch" or not under_way):
            if way == "lockstep":
                asked = [idle.pop(random.randrange(len(idle)))]
            else:
                asked, idle = idle, []
            under_way += len(asked)
            if way == "batch":
                together = pb.RequestBatch(requests=[talker.ask() for talker in asked])
                await stream.write(pb.StreamRequest(batch=together).SerializeToString())
            else:
                for talker in asked:
                    await stream.write(talker.ask().SerializeToString())
        if not under_way:
            break
        reply = await stream.read()
        if way != "lockstep" or not isinstance(reply, bytes) or not reply.startswith(CHUNK_TAG):
            asked = [by_id[session_id] for session_id in answered(reply, is_echo)]
        for talker in asked:
            clock.called(talker.asked_at)
        under_way -= len(asked)
        idle += [talker for talker in asked if talker.left != 0]
    await stream.done_writing()
    await stream.read()


def answered(reply: Any, is_echo: bool = False) -> list[str]:
    """The sessions whose chunks a reply answers; an echo says what it was told. Raises RuntimeError for a refusal."""
    message: Any = (pb.StreamRequest if is_echo else pb.StreamResponse).FromString(reply or b"")
    answers = [message]
    if message.WhichOneof("message") == "batch":
        answers = message.batch.requests if is_echo else message.batch.responses
    for answer in answers:
        if answer.WhichOneof("message") != "chunk":
            raise RuntimeError(f"the server refused a chunk: {answer}" if reply else "the server ended a stream")
    return [answer.chunk.session_id for answer in answers]


class Talker:
    """One session as its messages see it."""

    def __init__(self, session: pb.Session, inputs: pb.Array, chunks: int = 0) -> None:
        self.session_id = session.session_id
        self.position = int(session.position)  # where the session stands after what was asked for
        self.left = chunks or -1  # that it will ask for; -1 for ever
        self.asked_at = 0.0
        chunk = pb.Chunk(session_id=session.session_id, incarnation=session.incarnation, inputs=inputs)
        self._request = pb.StreamRequest(chunk=chunk)
        self._timesteps = inputs.shape[0]

    def ask(self) -> pb.StreamRequest:
        """The next chunk; to be sent before the next is asked for."""
        self._request.chunk.position = self.position
        self.position += self._timesteps
        self.left -= 1
        self.asked_at = time.perf_counter()
        return self._request


class Clock:
    """Collects the calls of a span that begins now; with slow calls it lasts until each caller was answered twice."""

    def __init__(self, span: Span, callers: int, pids: Sequence[int] = ()) -> None:
        self._counted_from = self._last = time.perf_counter() + span.warm_up_s
        self._until = self._counted_from + span.seconds
        self._callers = callers
        self._pids = pids
        self._took: list[float] = []
        self._spent = [0.0, 0.0]  # by the server, before and after

    @property
    def over(self) -> bool:
        late_s = time.perf_counter() - self._until
        return late_s >= 0 and (len(self._took) >= 2 * self._callers or late_s >= LONGER_AT_MOST_S)

    def called(self, started: float) -> None:
        """A call that began at `started` has its answer now."""
        if self._counted_from <= (now := time.perf_counter()) and not self.over:
            if not self._took:
                self._spent[0] = processor_s(self._pids)
            self._took.append(now - started)
            self._last = now
        elif self._took and not self._spent[1]:
            self._spent[1] = processor_s(self._pids)

    def figures(self, timesteps: int) -> Figures:
        """Of calls of so many timesteps each; raises RuntimeError if none ended within the span."""
        if not self._took:
            raise RuntimeError("no call was answered within the time")
        p50, p99 = np.percentile(self._took, (50, 99)) * 1000
        rate = len(self._took) * timesteps / (self._last - self._counted_from)
        spent = (self._spent[1] or processor_s(self._pids)) - self._spent[0]
        return Figures(len(self._took), float(p50), float(p99), rate, spent / len(self._took) * 1e6)


def processor_s(pids: Sequence[int]) -> float:
    """Seconds of processor time that processes have spent until now (Linux)."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)  # as clock_getcpuclockid(3) makes a clock's number


async def lockstep(callers: Sequence[Exchange], timesteps: int, span: Span, pids: Sequence[int] = ()) -> Figures:
    """All callers at once, each one call after the other."""
    clock = Clock(span, len(callers), pids)

    async def repeat(exchange: Exchange) -> None:
        while not clock.over:
            started = time.perf_counter()
            await exchange()
            clock.called(started)

    await asyncio.gather(*(repeat(exchange) for exchange in callers))
    return clock.figures(timesteps)


def bits(timesteps: int, input_size: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Random bits [T, I], always the same."""
    return np.random.default_rng(7).integers(0, 2, (timesteps, input_size)).astype(np.float32)


def array_of(values: "np.ndarray[Any, np.dtype[np.float32]]") -> pb.Array:
    return pb.Array(shape=values.shape, data=values.tobytes(), dtype=pb.DATA_TYPE_FLOAT32)


def in_turns(measures: Mapping[Any, Callable[[], Any]], rounds: int, told: Callable[[str], None]) -> list[Any]:
    """Each measurement once in each round, in an order that alternates, so that whatever else the machine does falls on
    all alike; `told` hears what is being done."""
    turns = []
    for index in range(rounds):
        turn = {}
        for name in list(measures)[:: 1 if index % 2 == 0 else -1]:
            told(f"round {index + 1} of {rounds}: {', '.join(map(str, name)) if isinstance(name, tuple) else name}")
            turn[name] = measures[name]()
        turns.append(turn)
    return turns


def median_figures(figures: Sequence[Figures]) -> Figures:
    """The median of each, and the sum of the calls."""
    columns = ("p50_ms", "p99_ms", "timesteps_per_s", "server_us")
    medians = (statistics.median(getattr(one, column) for one in figures) for column in columns)
    return Figures(sum(one.calls for one in figures), *medians)
