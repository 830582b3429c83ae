"""What those who share a server with a well-behaved session do to its calls: one that floods, watchers, attackers.

    python -m bench.neighbours [--docs docs] [--serve FLAGS] [--rounds 5] [--quick]

Some sessions step one timestep at a time, alone and then beside each kind of neighbour. What is judged are the server's
own histograms, because clients and server share the cores. They know no sessions, but nothing that attackers and
watchers send is ever stepped, which the program makes sure of; and a flood of few, long chunks leaves the p99 to the
many of the well-behaved. Attackers have the lowest priority: they stand for other machines.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat, takewhile
from statistics import median

from bench.attacks import ATTACKS, VICTIMS, Endpoints
from bench.run import Aside, Ratio, Run, number, table
from bench.servers import Served, grown, mean, quantile
from dnc_serve.client import AsyncClient, Client
from dnc_serve.client.cli.load import Load, bits, run_loop

POLITE, FLOODING = "polite", "flood"
QUEUE_WAIT, TICK = "dnc_queue_wait_seconds", "dnc_tick_duration_seconds"
FLOOD_CHUNK = 4096
WATCHERS, FRAMES_PER_SECOND = 10, 30
WATCHED = ("memory", "link_matrix", "usage_vector", "write_weights", "read_weights", "precedence", "interface")
# Of the chunks that the histogram counts, so many may be others': a mutation may happen to be a good one, and readers
# that never read have one stepped.
STRANGERS, STRANGERS_AT_LEAST = 0.02, 2
MEAN_WAIT, P99_WAIT, P99 = "mean wait", "p99 of wait", "p99 of wait + tick"
MEAN_TICK, CALLS = "mean tick", "p99 of calls"
FIGURES = (MEAN_WAIT, P99_WAIT, P99, MEAN_TICK, CALLS)


@dataclass(frozen=True)
class Neighbour:
    """`work(endpoints, seconds)` says how much it did; `at_most` is by how much each figure may grow."""

    work: Callable[[Endpoints, float], int]
    at_most: Mapping[str, float]
    sessions: int = 1  # that step beside it
    steps: bool = False  # it is stepped itself


def flood(at: Endpoints, seconds: float) -> int:
    """Keeps as many long chunks of one session under way as it may; how many were answered."""
    until = time.monotonic() + seconds
    chunks = repeat(bits(FLOOD_CHUNK, at.input_size))
    with Client(at.grpc) as client, client.session(FLOODING) as session:
        return 1 + sum(1 for _ in takewhile(lambda _: time.monotonic() < until, session.stream(chunks)))


def watch(at: Endpoints, seconds: float) -> int:
    """Watchers of everything of one session; how many frames they got."""

    async def run() -> int:
        frames = 0

        async def one(client: AsyncClient) -> None:
            nonlocal frames
            async for _ in client.session(f"{POLITE}0", create=False).watch(WATCHED, FRAMES_PER_SECOND):
                frames += 1

        async with AsyncClient(at.grpc) as client:
            watching = [asyncio.ensure_future(one(client)) for _ in range(WATCHERS)]
            await asyncio.wait(watching, timeout=seconds)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        return frames

    return run_loop(run())


NEIGHBOURS = {
    "one that floods": Neighbour(flood, {P99: 3.0, CALLS: 3.0}, steps=True),
    f"{WATCHERS} watchers of one of five sessions": Neighbour(watch, {MEAN_TICK: 1.1, MEAN_WAIT: 1.1}, sessions=5),
    **{name: Neighbour(attack, {MEAN_WAIT: 3.0, P99_WAIT: 3.0, P99: 3.0}) for name, attack in ATTACKS.items()},
}


def main() -> None:
    with Run("neighbours", __doc__, seconds=4.0) as run, run.served() as server:
        other, attacker = run.aside(), run.aside()
        attacker.run(os.nice, 19)
        with Client(server.endpoint.address) as client:
            for name in (FLOODING, *VICTIMS):
                client.session(name).info()
        measures = {_alone(sessions): partial(look, run, server, sessions) for sessions in (1, 5)}
        for name, neighbour in NEIGHBOURS.items():
            process = attacker if neighbour.work in ATTACKS.values() else other
            measures[name] = partial(beside, run, server, neighbour, process)
        turns = run.turns(measures)
        for name, neighbour in NEIGHBOURS.items():
            alone = _alone(neighbour.sessions)
            for key, at_most in neighbour.at_most.items():
                grew = [turn[name][key] / turn[alone][key] for turn in turns]
                run.ratio(f"{name}: {key} / alone", grew, at_most=at_most)
        figures = {
            name: {key: median(turn[name][key] for turn in turns) for key in row} for name, row in turns[0].items()
        }
        run.finish(neighbours_table(figures, run.ratios), figures)


def _alone(sessions: int) -> str:
    return "alone" if sessions == 1 else f"{sessions} sessions alone"


def look(run: Run, server: Served, sessions: int, strangers: bool = False) -> dict[str, float]:
    """Milliseconds of the well-behaved; raises RuntimeError if others' chunks are among them unless that is wanted."""
    stood, before = server.position(POLITE), server.metrics()
    seen = run.stream(server.endpoint, Load(sessions, sessions), POLITE)()
    after, own = server.metrics(), server.position(POLITE) - stood
    counted = grown(before, after, f"{QUEUE_WAIT}_count")
    if not strangers and not own <= counted <= own + max(own * STRANGERS, STRANGERS_AT_LEAST):
        raise RuntimeError(f"the histogram counted {counted:.0f} chunks, those of the well-behaved were {own}")
    wait, tick = (quantile(before, after, name, 0.99) * 1000 for name in (QUEUE_WAIT, TICK))
    return {
        MEAN_WAIT: mean(before, after, QUEUE_WAIT) * 1000,
        P99_WAIT: wait,
        P99: wait + tick,
        MEAN_TICK: mean(before, after, TICK) * 1000,
        CALLS: seen.p99_ms,
    }


def beside(run: Run, server: Served, neighbour: Neighbour, process: Aside) -> dict[str, float]:
    """The same, while the neighbour is at work."""
    settle_s = 0.25 * run.seconds
    lasts_s = settle_s + 1.3 * run.seconds + settle_s
    at = Endpoints(server.endpoint.address, server.torchserve.address, server.model.input_size)
    working = process.start(neighbour.work, at, lasts_s)
    time.sleep(settle_s)
    figures = look(run, server, neighbour.sessions, neighbour.steps)
    return {**figures, "a second": working.result() / lasts_s}


def neighbours_table(figures: Mapping[str, Mapping[str, float]], ratios: Sequence[Ratio]) -> str:
    """Milliseconds, in brackets how many times as long as alone where that is judged."""
    judged = {ratio.name: ratio for ratio in ratios}
    rows = []
    for name, row in figures.items():
        of_alone = [judged.get(f"{name}: {key} / alone") for key in FIGURES]
        cells = [
            number(row[key]) + (f" ({ratio.value:.2f} ×{' missed' * bool(ratio.verdict)})" if ratio else "")
            for key, ratio in zip(FIGURES, of_alone, strict=True)
        ]
        rows.append([name, number(row.get("a second", 0)), *cells])
    return table(["beside", "a second", *(f"{key}, ms" for key in FIGURES)], rows)


if __name__ == "__main__":
    main()
