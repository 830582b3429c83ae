"""A long load: streams on which sessions come and go, and what the worker's memory, errors and p99 do meanwhile.

    python -m bench.soak [--minutes 20] [--streams 256] [--docs docs] [--code auto] [--quick]

Each stream opens a session, steps it for a while in chunks of different lengths, with pauses, and then deletes it or
leaves it to its idle timeout, to go on with another. The worker's resident memory is read from outside, every ten
seconds; the p99 is that of each interval, by the server's own histogram.
"""

import asyncio
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc

from bench.report import finish, markdown_ratios, markdown_table, parser_of
from dnc_serve.client.cli.measure.aside import aside
from dnc_serve.client.cli.measure.load import CHUNK_TAG, STREAM, bits, model_of, run_loop
from dnc_serve.client.cli.measure.rounds import Ratio, machine
from dnc_serve.client.cli.measure.served import Served, quantile, served
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.targets import channel_options

MODEL = "copy"
LATENCY = "dnc_step_duration_seconds"
PLOT = "performance-soak.svg"
IDLE_TIMEOUT_S = 20
CHUNKS = (1, 1, 1, 4, 16)
CALLS_OF_A_SESSION = (10, 400)
# Callers think between calls: at the limit of the machine, the p99 would only tell how many they are.
MEAN_PAUSE_S = 0.2
DELETED = 0.5  # of the sessions; the others are left to their idle timeout
LOOK_EVERY_S = 10.0
LOOKS_AT_LEAST = 12  # of a short load
QUICK_S = 15.0
WARM_UP = 0.2  # of the time: journal, allocator and idle sessions reach their level


@dataclass(frozen=True)
class Look:
    """The server at one moment, in seconds since the load began."""

    at_s: float
    rss_mib: float
    metrics: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Moment:
    """The server between two looks: memory, sessions and errors at the second one."""

    minute: float
    rss_mib: float
    p99_ms: float
    timesteps_per_s: float
    sessions: float
    errors: float


@dataclass(frozen=True)
class Callers:
    """What the callers did."""

    calls: int
    sessions: int
    refusals: int


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="of load (20)")
    parser.add_argument("--streams", type=int, default=256, help="open at once (256)")
    arguments = parser.parse_args()
    seconds = QUICK_S if arguments.quick else arguments.minutes * 60
    with served(MODEL, "--idle-timeout-s", str(IDLE_TIMEOUT_S), code=arguments.code) as server:
        looks, callers = soak(server, arguments.streams, seconds, _told)
    moments = moments_of(looks)
    ratios = judged(moments, callers)
    report = {
        "machine": machine(),
        "code": arguments.code,
        "minutes": seconds / 60,
        "streams": arguments.streams,
        "callers": asdict(callers),
        "moments": [_rounded(moment) for moment in moments],
        "ratios": [ratio.as_dict() for ratio in ratios],
    }
    done = (
        f"{callers.calls:,} calls of {callers.sessions:,} sessions on {arguments.streams} streams in {seconds:,.0f} s; "
        f"memory is read every {looks[1].at_s - looks[0].at_s:.0f} s."
    )
    text = f"{done}\n\n{markdown_ratios(ratios)}\n\n{_by_minute(looks)}"
    finish("soak", report, text, arguments.docs, partial(draw, moments))


def soak(
    server: Served, streams: int, seconds: float, told: Callable[[str], None] = lambda line: None
) -> tuple[list[Look], Callers]:
    """Loads a server, and looks at it at even intervals meanwhile; `told` hears how it stands."""
    with aside() as load:
        input_size = load.run(model_of, server.grpc)[0]
        worker = server.worker()
        loading = load.start(come_and_go, server.grpc, streams, input_size, seconds)
        interval = min(LOOK_EVERY_S, seconds / LOOKS_AT_LEAST)
        started = time.monotonic()
        looks: list[Look] = []
        for index in range(round(seconds / interval) + 1):
            time.sleep(max(0.0, started + index * interval - time.monotonic()))
            rss_mib = worker.memory_info().rss / 2**20
            looks.append(Look(time.monotonic() - started, rss_mib, server.metrics()))
            told(f"{looks[-1].at_s:,.0f} of {seconds:,.0f} s, {rss_mib:.1f} MiB")
        return looks, loading.result()


def moments_of(looks: Sequence[Look]) -> list[Moment]:
    """What was between each look and the next."""
    return [_between(before, after) for before, after in pairwise(looks)]


def _between(before: Look, after: Look) -> Moment:
    def counted(name: str) -> float:
        return after.metrics.get((name, ""), 0.0) - before.metrics.get((name, ""), 0.0)

    seconds = after.at_s - before.at_s
    answered = counted(f"{LATENCY}_count")
    # Where nobody was answered, everybody waited for as long at least.
    p99_s = quantile(before.metrics, after.metrics, LATENCY, 0.99) if answered else seconds
    return Moment(
        minute=after.at_s / 60,
        rss_mib=after.rss_mib,
        p99_ms=p99_s * 1000,
        timesteps_per_s=counted("dnc_timesteps_total") / seconds,
        sessions=after.metrics["dnc_sessions", ""],
        errors=after.metrics.get(("dnc_errors_total", ""), 0.0),
    )


def growth(moments: Sequence[Moment], name: str) -> float:
    """A figure after warm-up: its mean over the last third of the time, relative to that over the first third."""
    steady = [getattr(moment, name) for moment in moments[int(len(moments) * WARM_UP) :]]
    third = max(1, len(steady) // 3)
    return float(sum(steady[-third:]) / sum(steady[:third]))


def judged(moments: Sequence[Moment], callers: Callers) -> list[Ratio]:
    """Memory flat, p99 steady, nothing refused."""
    memory, p99 = growth(moments, "rss_mib"), growth(moments, "p99_ms")
    refusals = callers.refusals + moments[-1].errors
    return [
        Ratio("resident memory of the worker: last third / first third", memory, at_most=1.03),
        Ratio("p99 by the server: last third / first third", p99, at_most=1.25),
        Ratio("refusals, seen by callers or counted by the server", refusals, at_most=0.0),
    ]


def _by_minute(looks: Sequence[Look]) -> str:
    """A row for each minute; for a load of less than two, one for each look."""
    a_minute = round(60 / (looks[1].at_s - looks[0].at_s))
    chosen = looks[::a_minute] if len(looks) > 2 * a_minute else looks
    rows = [
        [
            f"{moment.minute:.1f}",
            f"{moment.rss_mib:.1f}",
            f"{moment.p99_ms:.1f}",
            f"{moment.timesteps_per_s:,.0f}",
            f"{moment.sessions:,.0f}",
            f"{moment.errors:,.0f}",
        ]
        for moment in moments_of(chosen)
    ]
    return markdown_table(["until minute", "memory, MiB", "p99, ms", "timesteps/s", "sessions", "errors"], rows)


def _rounded(moment: Moment) -> dict[str, float]:
    return {name: round(value, 3) for name, value in asdict(moment).items()}


def _told(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr)


def come_and_go(address: str, streams: int, input_size: int, seconds: float) -> Callers:
    """The load, until the time is over."""
    return run_loop(_come_and_go(address, streams, input_size, seconds))


async def _come_and_go(address: str, streams: int, input_size: int, seconds: float) -> Callers:
    until = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
        results = await asyncio.gather(*(_sit(channel, index, input_size, until) for index in range(streams)))
    return Callers(*(sum(column) for column in zip(*results, strict=True)))


async def _sit(channel: grpc.aio.Channel, place: int, input_size: int, until: float) -> tuple[int, int, int]:
    """One stream's place: session after session; calls, sessions and refusals."""
    stub: Any = dnc_pb2_grpc.DncServiceStub(channel)
    dice = random.Random(place)
    arrays = {
        chunk: pb.Array(shape=[chunk, input_size], data=bits(chunk, input_size).tobytes(), dtype=pb.DATA_TYPE_FLOAT32)
        for chunk in set(CHUNKS)
    }
    calls, sessions, refusals = 0, 0, 0
    while time.monotonic() < until:
        created = await stub.CreateSession(pb.CreateSessionRequest(session_id=f"soak-{place}-{sessions}"))
        session, position = created.session, 0
        sessions += 1
        stream: Any = channel.stream_stream(STREAM)()
        for _ in range(dice.randint(*CALLS_OF_A_SESSION)):
            await asyncio.sleep(dice.uniform(0, 2 * MEAN_PAUSE_S))
            if time.monotonic() >= until:
                break
            chunk = dice.choice(CHUNKS)
            message = pb.Chunk(
                session_id=session.session_id,
                incarnation=session.incarnation,
                position=position,
                inputs=arrays[chunk],
            )
            await stream.write(pb.StreamRequest(chunk=message).SerializeToString())
            reply = await stream.read()
            calls += 1
            if isinstance(reply, bytes) and reply.startswith(CHUNK_TAG):
                position += chunk
            else:
                refusals += 1
        await stream.done_writing()
        await stream.read()
        if dice.random() < DELETED:
            await stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.session_id))
    return calls, sessions, refusals


def draw(moments: Sequence[Moment], folder: Path) -> dict[str, str]:
    """Memory, p99, rate and sessions over time; what the plot shows, by its file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)
    minutes = [moment.minute for moment in moments]
    titles = {
        "rss_mib": "resident memory of the worker, MiB",
        "p99_ms": "p99 of a chunk by the server, ms",
        "timesteps_per_s": "timesteps/s",
        "sessions": "sessions alive",
    }
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        values = [getattr(moment, name) for moment in moments]
        axis.plot(minutes, values, linewidth=1.2)
        axis.set_ylim(0, 1.15 * max(*values, 1e-9))
        axis.set_title(title, fontsize=9, loc="left")
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("minutes")
    figure.savefig(folder / PLOT, metadata={"Date": None})
    return {PLOT: "Memory of the worker, p99 of a chunk, timesteps a second, and sessions alive, over time"}


if __name__ == "__main__":
    main()
