"""A long load: streams on which sessions come and go, and what the worker's memory, errors and p99 do meanwhile.

    python -m bench.soak [--minutes 20] [--streams 256] [--docs docs] [--serve FLAGS] [--quick]

Each stream opens a session, steps it for a while in chunks of different lengths, with pauses, and then deletes it or
leaves it to its idle timeout, to go on with another. The worker's resident memory is read from outside, every ten
seconds; the p99 is that of each interval, by the server's own histogram.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from bench.run import Aside, Run, number, ratio_table, table
from bench.servers import Metrics, Served, grown, quantile
from dnc_serve.client import AsyncClient, DncError
from dnc_serve.client.cli.bench import told
from dnc_serve.client.cli.load import Server, bits, run_loop

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
QUICK_S = 6.0
WARM_UP = 0.2  # of the time: journal, allocator and idle sessions reach their level


class Look(NamedTuple):
    """The server at one moment, in seconds since the load began."""

    at_s: float
    rss_mib: float
    metrics: Metrics


class Moment(NamedTuple):
    """The server between two looks: memory, sessions and errors at the second one."""

    minute: float
    rss_mib: float
    p99_ms: float
    timesteps_per_s: float
    sessions: float
    errors: float


class Callers(NamedTuple):
    """What the callers did."""

    calls: int
    sessions: int
    refusals: int


TITLES = (
    "until minute", "memory of the worker, MiB", "p99 by the server, ms", "timesteps/s", "sessions alive", "errors"
)  # fmt: skip


def main() -> None:
    minutes = {"type": float, "default": 20.0, "help": "of load (20)"}
    streams = {"type": int, "default": 256, "help": "open at once (256)"}
    with Run("soak", __doc__, minutes=minutes, streams=streams) as run:
        seconds = QUICK_S if run.quick else run.asked.minutes * 60
        with run.served("--idle-timeout-s", str(IDLE_TIMEOUT_S)) as server:
            looks, callers = soak(server, run.load, run.asked.streams, seconds, told)
        moments = moments_of(looks)
        judge(run, moments, callers)
        a_row = max(1, len(moments) // 10)
        rows = [[number(each) for each in moment] for moment in moments_of(looks[::a_row])]
        done = f"{callers.calls:,} calls of {callers.sessions:,} sessions on {run.asked.streams} streams."
        text = f"{done}\n\n{ratio_table(run.ratios)}\n\n{table(TITLES, rows)}"
        report = {"callers": callers._asdict(), "moments": [moment._asdict() for moment in moments]}
        run.finish(text, report, partial(draw, moments))


def soak(
    server: Served, load: Aside, streams: int, seconds: float, told: Callable[[str], None] = lambda line: None
) -> tuple[list[Look], Callers]:
    """Loads a server, and looks at it at even intervals meanwhile; `told` hears how it stands."""
    loading = load.start(come_and_go, server.endpoint, streams, seconds)
    interval = min(LOOK_EVERY_S, seconds / LOOKS_AT_LEAST)
    started = time.monotonic()
    looks: list[Look] = []
    for index in range(round(seconds / interval) + 1):
        time.sleep(max(0.0, started + index * interval - time.monotonic()))
        rss_mib = server.worker.memory_info().rss / 2**20
        looks.append(Look(time.monotonic() - started, rss_mib, server.metrics()))
        told(f"{looks[-1].at_s:,.0f} of {seconds:,.0f} s, {rss_mib:.1f} MiB")
    return looks, loading.result()


def moments_of(looks: Sequence[Look]) -> list[Moment]:
    """What was between each look and the next."""
    return [_between(before, after) for before, after in pairwise(looks)]


def _between(before: Look, after: Look) -> Moment:
    seconds = after.at_s - before.at_s
    answered = grown(before.metrics, after.metrics, f"{LATENCY}_count")
    # Where nobody was answered, everybody waited for as long at least.
    p99_s = quantile(before.metrics, after.metrics, LATENCY, 0.99) if answered else seconds
    rate = grown(before.metrics, after.metrics, "dnc_timesteps_total") / seconds
    sessions, errors = (after.metrics.get((name, ""), 0.0) for name in ("dnc_sessions", "dnc_errors_total"))
    return Moment(after.at_s / 60, after.rss_mib, p99_s * 1000, rate, sessions, errors)


def growth(moments: Sequence[Moment], name: str) -> float:
    """A figure after warm-up: its mean over the last third of the time, relative to that over the first third."""
    steady = [getattr(moment, name) for moment in moments[int(len(moments) * WARM_UP) :]]
    third = max(1, len(steady) // 3)
    return float(sum(steady[-third:]) / sum(steady[:third]))


def judge(run: Run, moments: Sequence[Moment], callers: Callers) -> None:
    """Memory flat, p99 steady, nothing refused."""
    run.ratio("memory of the worker: last third / first third", [growth(moments, "rss_mib")], at_most=1.03)
    run.ratio("p99 by the server: last third / first third", [growth(moments, "p99_ms")], at_most=1.25)
    refusals = callers.refusals + moments[-1].errors
    run.ratio("refusals, seen by callers or counted by the server", [refusals], at_most=0.0)


def come_and_go(server: Server, streams: int, seconds: float) -> Callers:
    """The load by the client library, a stream for each session, until the time is over."""
    until, counts = time.monotonic() + seconds, Counter[str]()
    inputs = {chunk: bits(chunk, server.input_size) for chunk in CHUNKS}

    async def sit(client: AsyncClient, place: int) -> None:
        """One stream's place: session after session."""
        dice = random.Random(place)
        while time.monotonic() < until:
            counts["sessions"] += 1
            async with client.session() as session:
                for _ in range(dice.randint(*CALLS_OF_A_SESSION)):
                    await asyncio.sleep(dice.uniform(0, 2 * MEAN_PAUSE_S))
                    if time.monotonic() >= until:
                        break
                    counts["calls"] += 1
                    try:
                        await session.step(inputs[dice.choice(CHUNKS)])
                    except DncError:
                        counts["refusals"] += 1
                        break
                if dice.random() < DELETED:
                    await session.delete()

    async def load() -> Callers:
        async with AsyncClient(server.address) as client:
            await asyncio.gather(*(sit(client, place) for place in range(streams)))
        return Callers(counts["calls"], counts["sessions"], counts["refusals"])

    return run_loop(load())


def draw(moments: Sequence[Moment], folder: Path) -> dict[str, str]:
    """Memory, p99, rate and sessions over time; what the plot shows, by its file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    minutes, *columns = zip(*moments, strict=True)
    for axis, title, values in zip(figure.subplots(4, 1, sharex=True), TITLES[1:], columns, strict=False):
        axis.plot(minutes, values, linewidth=1.2)
        axis.set_ylim(0, 1.15 * max(*values, 1e-9))
        axis.set_title(title, fontsize=9, loc="left")
        axis.grid(alpha=0.3)
    axis.set_xlabel("minutes")
    figure.savefig(folder / PLOT, metadata={"Date": None})
    return {PLOT: "Memory of the worker, p99 of a chunk, timesteps a second, and sessions alive, over time"}


if __name__ == "__main__":
    main()
