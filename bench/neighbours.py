"""What those who share a server with a well-behaved session do to its calls: one that floods, watchers, attackers.

    python -m bench.neighbours [--docs docs] [--serve FLAGS] [--rounds 5] [--quick]

Some sessions step one timestep at a time, alone and then beside each kind of neighbour. What is judged are the server's
own histograms, because clients and server share the cores. They know no sessions, but nothing that attackers and
watchers send is ever stepped, which the program makes sure of; and a flood of few, long chunks leaves the p99 to the
many of the well-behaved. Attackers have the lowest priority: they stand for other machines.
"""

import asyncio
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from bench.attacks import ATTACKS, VICTIMS, Endpoints
from bench.report import Ratio, finish, markdown_table, median_of, number, parser_of
from bench.servers import MODEL, Aside, Served, aside, grown, mean, quantile, served
from dnc_serve.client import AsyncClient
from dnc_serve.client.cli.bench import told
from dnc_serve.client.cli.load import (
    Load,
    Server,
    Span,
    answered,
    array_of,
    bits,
    connected,
    in_turns,
    model_of,
    run_loop,
    stream_load,
)  # fmt: skip
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

POLITE = "polite"
QUEUE_WAIT, TICK = "dnc_queue_wait_seconds", "dnc_tick_duration_seconds"
WARM_UP_S, SETTLE_S = 0.2, 1.0
FLOOD_CHUNK, FLOOD_IN_FLIGHT = 4096, 32
WATCHERS, FRAMES_PER_SECOND = 10, 30
WATCHED = ("memory", "link_matrix", "usage_vector", "write_weights", "read_weights", "precedence", "interface")
# Of the chunks that the histogram counts, so many may be others': a mutation may happen to be a good one.
STRANGERS = 0.02
MEAN_WAIT, P99_WAIT, P99, MEAN_TICK, CALLS = (
    "mean wait",
    "p99 of wait",
    "p99 of wait + tick",
    "mean tick",
    "p99 of calls",
)


@dataclass(frozen=True)
class Neighbour:
    """`work(endpoints, seconds)` says how much it did; `at_most` is by how much each figure may grow."""

    work: Callable[[Endpoints, float], int]
    at_most: Mapping[str, float]
    sessions: int = 1  # that step beside it
    steps: bool = False  # it is stepped itself
    hostile: bool = field(default=False)


def flood(at: Endpoints, seconds: float) -> int:
    """Keeps many long chunks of one session under way; how many were answered."""

    async def keep_full() -> int:
        chunk = pb.Chunk(session_id="flood", inputs=array_of(bits(FLOOD_CHUNK, at.input_size)))
        message = pb.StreamRequest(chunk=chunk).SerializeToString()
        count, until = 0, time.monotonic() + seconds
        async with connected(Server(at.grpc)) as endpoint:
            stream = endpoint.stream()
            for _ in range(FLOOD_IN_FLIGHT):
                await stream.write(message)
            while time.monotonic() < until:
                count += len(answered(await stream.read()))
                await stream.write(message)
            stream.cancel()
        return count

    return run_loop(keep_full())


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


FLOOD, TEN_WATCHERS = "one that floods", f"{WATCHERS} watchers of one of five sessions"
NEIGHBOURS = {
    FLOOD: Neighbour(flood, {P99: 3.0, CALLS: 3.0}, steps=True),
    TEN_WATCHERS: Neighbour(watch, {MEAN_TICK: 1.1, MEAN_WAIT: 1.1}, sessions=5),
    **{
        name: Neighbour(attack, {MEAN_WAIT: 3.0, P99_WAIT: 3.0, P99: 3.0}, hostile=True)
        for name, attack in ATTACKS.items()
    },
}


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    rounds, seconds = (1, 0.5) if arguments.quick else (arguments.rounds, 4.0)
    with served(MODEL, *shlex.split(arguments.serve)) as server, aside() as load, aside() as other, aside() as attacker:
        attacker.run(os.nice, 19)
        at = Endpoints(server.endpoint.address, server.torchserve.address, load.run(input_size_of, server.endpoint))
        load.run(positions, server.endpoint, ["flood", *VICTIMS])
        measures = {_alone(sessions): partial(look, server, load, sessions, seconds) for sessions in (1, 5)}
        for name, neighbour in NEIGHBOURS.items():
            process = attacker if neighbour.hostile else other
            measures[name] = partial(beside, neighbour, process, at, server, load, seconds)
        turns = in_turns(measures, rounds, told)
    told("")
    figures, ratios = {}, []
    for name in turns[0]:
        figures[name] = {key: median_of(turns, lambda turn, key=key: turn[name][key]) for key in turns[0][name]}  # type: ignore[misc]
    for name, neighbour in NEIGHBOURS.items():
        for key, at_most in neighbour.at_most.items():
            grew = median_of(turns, lambda turn: turn[name][key] / turn[_alone(neighbour.sessions)][key])
            ratios.append(Ratio(f"{name}: {key} / alone", grew, at_most))
    finish("neighbours", arguments, table(figures, ratios), {"milliseconds": figures, "ratios": ratios})


def _alone(sessions: int) -> str:
    return "alone" if sessions == 1 else f"{sessions} sessions alone"


def look(server: Served, load: Aside, sessions: int, seconds: float, strangers: bool = False) -> dict[str, float]:
    """Milliseconds of the well-behaved; raises RuntimeError if others' chunks are among them unless that is wanted."""
    names = [f"{POLITE}{index}" for index in range(sessions)]
    stood, before = load.run(positions, server.endpoint, names), server.metrics()
    span = Span(seconds, WARM_UP_S)
    seen = load.run(stream_load, server.endpoint, Load(sessions, sessions), span, POLITE)
    after, own = server.metrics(), load.run(positions, server.endpoint, names) - stood
    counted = grown(before, after, f"{QUEUE_WAIT}_count")
    if not strangers and not own <= counted <= own * (1 + STRANGERS):
        raise RuntimeError(f"the histogram counted {counted:.0f} chunks, those of the well-behaved were {own}")
    wait, tick = (quantile(before, after, name, 0.99) * 1000 for name in (QUEUE_WAIT, TICK))
    return {
        MEAN_WAIT: mean(before, after, QUEUE_WAIT) * 1000,
        P99_WAIT: wait,
        P99: wait + tick,
        MEAN_TICK: mean(before, after, TICK) * 1000,
        CALLS: seen.p99_ms,
    }


def beside(
    neighbour: Neighbour, process: Aside, at: Endpoints, server: Served, load: Aside, seconds: float
) -> dict[str, float]:
    """The same, while the neighbour is at work."""
    lasts_s = SETTLE_S + WARM_UP_S + seconds + SETTLE_S
    working = process.start(neighbour.work, at, lasts_s)
    time.sleep(SETTLE_S)
    figures = look(server, load, neighbour.sessions, seconds, neighbour.steps)
    return {**figures, "a second": working.result() / lasts_s}


def input_size_of(server: Server) -> int:
    return int(model_of(server).input_size)


def positions(server: Server, names: list[str]) -> int:
    """Of sessions, which are made if they aren't there: the sum."""

    async def ask() -> int:
        async with connected(server) as endpoint:
            return sum(session.position for session in await endpoint.create(names))

    return run_loop(ask())


def table(figures: Mapping[str, Mapping[str, float]], ratios: list[Ratio]) -> str:
    """Milliseconds, in brackets how many times as long as alone where that is judged."""
    judged = {ratio.name: ratio for ratio in ratios}
    rows = []
    for name, row in figures.items():
        cells, missed = [], []
        for key in (MEAN_WAIT, P99_WAIT, P99, MEAN_TICK, CALLS):
            ratio = judged.get(f"{name}: {key} / alone")
            cells.append(number(row[key]) + (f" ({ratio.value:.2f} ×)" if ratio else ""))
            missed += [f"{key} {ratio.aim}"] if ratio and ratio.verdict else []
        rows.append([name, number(row.get("a second", 0)), *cells, ", ".join(missed)])
    head = ["beside", "a second", *(f"{key}, ms" for key in (MEAN_WAIT, P99_WAIT, P99, MEAN_TICK, CALLS)), "missed"]
    return markdown_table(head, rows)


if __name__ == "__main__":
    main()
