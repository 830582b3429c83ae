"""A long load: streams on which sessions come and go, and what the worker's memory, errors and p99 do meanwhile.

    python -m bench.soak [--minutes 20] [--streams 256] [--docs docs] [--compile] [--quick]

Each stream opens a session, steps it for a while in chunks of different lengths, with pauses, and then deletes it or
leaves it to its idle timeout, to go on with another. The worker's resident memory is read from outside; the p99 is
that of each interval, by the server's own histogram.
"""

import asyncio
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from bench.report import finish, markdown_ratios, parser_of
from dnc_serve.client.cli.measure.aside import aside
from dnc_serve.client.cli.measure.load import CHUNK_TAG, STREAM, bits, model_of, run_loop
from dnc_serve.client.cli.measure.rounds import Ratio, machine
from dnc_serve.client.cli.measure.served import Served, quantile, served
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc

MODEL = "copy"
IDLE_TIMEOUT_S = 20
CHUNKS = (1, 1, 1, 4, 16)
CALLS_OF_A_SESSION = (10, 400)
# Callers think between calls: at the limit of the machine, the p99 would only tell how many they are.
MEAN_PAUSE_S = 0.2
DELETED = 0.5  # of the sessions; the others are left to their idle timeout
INTERVALS = 120
WARM_UP = 0.2  # of the time: journal, allocator and idle sessions reach their level


@dataclass(frozen=True)
class Moment:
    """The server over one interval."""

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
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw memory, p99 and rate over time as an SVG or PNG"
    )
    arguments = parser.parse_args()
    with served(MODEL, "--idle-timeout-s", str(IDLE_TIMEOUT_S), compiled=arguments.compile) as server, aside() as load:
        input_size = load.run(model_of, server.grpc)[0]
        seconds = 15.0 if arguments.quick else arguments.minutes * 60
        loading = load.start(come_and_go, server.grpc, arguments.streams, input_size, seconds)
        moments = watch(server, seconds)
        callers = loading.result()
    ratios = judged(moments, callers)
    report = {
        "machine": machine(),
        "compiled": arguments.compile,
        "minutes": arguments.minutes,
        "streams": arguments.streams,
        "callers": asdict(callers),
        "moments": [{name: round(value, 3) for name, value in asdict(moment).items()} for moment in moments],
        "ratios": [ratio.as_dict() for ratio in ratios],
    }
    done = (
        f"{callers.calls:,} calls of {callers.sessions:,} sessions on {arguments.streams} streams in {seconds:,.0f} s."
    )
    finish("soak", report, f"{done}\n\n{markdown_ratios(ratios)}", arguments.docs)
    if arguments.docs:
        draw(moments, arguments.docs / "images" / "performance-soak.svg")


def watch(server: Served, seconds: float) -> list[Moment]:
    """Looks at the server at even intervals while the load runs."""
    worker, started = server.worker(), time.monotonic()
    interval = seconds / INTERVALS
    moments, before, looked = [], server.metrics(), started
    for index in range(INTERVALS):
        time.sleep(max(0.0, started + (index + 1) * interval - time.monotonic()))
        after, now = server.metrics(), time.monotonic()
        if after["dnc_step_duration_seconds_count", ""] == before["dnc_step_duration_seconds_count", ""]:
            continue
        moments.append(
            Moment(
                minute=(now - started) / 60,
                rss_mib=worker.memory_info().rss / 2**20,
                p99_ms=quantile(before, after, "dnc_step_duration_seconds", 0.99) * 1000,
                timesteps_per_s=(after["dnc_timesteps_total", ""] - before["dnc_timesteps_total", ""]) / (now - looked),
                sessions=after["dnc_sessions", ""],
                errors=after.get(("dnc_errors_total", ""), 0.0),
            )
        )
        before, looked = after, now
        if sys.stderr.isatty():
            print(f"\r\x1b[K{moments[-1]}", end="", file=sys.stderr)
    return moments


def judged(moments: list[Moment], callers: Callers) -> list[Ratio]:
    """Memory flat, p99 steady, nothing refused; each over the time after warm-up, by the means of its thirds."""
    steady = moments[int(len(moments) * WARM_UP) :]
    third = max(1, len(steady) // 3)

    def growth(name: str) -> float:
        first, last = ([getattr(moment, name) for moment in part] for part in (steady[:third], steady[-third:]))
        return (sum(last) / len(last)) / (sum(first) / len(first))

    return [
        Ratio("resident memory of the worker: last third / first third", growth("rss_mib"), at_most=1.03),
        Ratio("p99 by the server: last third / first third", growth("p99_ms"), at_most=1.25),
        Ratio("refusals, seen by callers or counted by the server", callers.refusals + moments[-1].errors, at_most=0.0),
    ]


def come_and_go(address: str, streams: int, input_size: int, seconds: float) -> Callers:
    """The load, until the time is over."""
    return run_loop(_come_and_go(address, streams, input_size, seconds))


async def _come_and_go(address: str, streams: int, input_size: int, seconds: float) -> Callers:
    until = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(address) as channel:
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


def draw(moments: list[Moment], file: Path) -> None:
    """Memory, p99, rate and sessions over time."""
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
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
