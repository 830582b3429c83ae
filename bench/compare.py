"""This project beside what people use today, in one run: servers under the same load, and models in a bare loop.

    python -m bench.compare [--docs docs] [--code auto] [--rounds 3] [--seconds 0.8] [--quick] [--cache FOLDER]

The axes: sessions from 1 to 10,000, timesteps of a chunk from 1 to 64, memory slots from 16 to 1,024. What is judged is
the median of some alternating runs, the rest of the axes is run once. With `--docs` the tables, the plots and the
figures as JSON are written there. The first run installs the peers into the cache folder.
"""

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench import loops, plots
from bench.peers.cache import cache_folder, dnc_package
from bench.report import finish, markdown_ratios, markdown_table, parser_of
from bench.systems import AFTERNOON, ECHO, OURS, TRITON, Arena, arena
from dnc_serve.client.cli.measure.aside import Aside, aside
from dnc_serve.client.cli.measure.lockstep import Figures, Span
from dnc_serve.client.cli.measure.rounds import Ratio, in_turns, machine

MODEL = "copy"
MANY, CHUNK, SLOTS = 64, 16, 1_024
# Sessions and chunk of the points that are judged; the others are on the axes only.
QUICK_POINTS = {(1, 1), (MANY, 1), (MANY, CHUNK)}
JUDGED_POINTS = QUICK_POINTS | {(1_000, 1), (10_000, CHUNK)}
SESSIONS, CHUNKS = (1, 8, 64, 1_000, 10_000), (1, 4, 16, 64)
AXES_POINTS = {(sessions, chunk) for sessions in SESSIONS for chunk in (1, CHUNK)} | {(MANY, each) for each in CHUNKS}
CELLS = (16, 64, 256, 1_024)
CELLS_SLOTS = 64  # at 1,024 memory slots a state takes 4 MiB
ROWS = (1, 8, 64)
FAILED = "failed"  # instead of figures: a peer that died or did not answer
PACKAGE, TORCHSCRIPT, KERNEL = "the dnc package", "our TorchScript", "our row kernel"

Point = tuple[str, int, int]  # system, sessions, chunk
Measures = dict[Any, Callable[[], Any]]
Turns = Sequence[Mapping[Any, Any]]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="alternating runs of what is judged (3)")
    parser.add_argument("--seconds", type=float, default=0.8, help="of each run (0.8)")
    parser.add_argument(
        "--cache", type=Path, default=cache_folder(), metavar="FOLDER", help="of the peers (%(default)s)"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    rounds, span = (1, Span(0.3, 0.2)) if quick else (arguments.rounds, Span(arguments.seconds, 0.3))
    judged, others = (QUICK_POINTS, set()) if quick else (JUDGED_POINTS, AXES_POINTS - JUDGED_POINTS)
    most = max(sessions for sessions, _ in judged)

    with aside() as load, aside() as alone:
        with arena(MODEL, None, SLOTS, most, arguments.code, load, arguments.cache) as ring:
            turns: Turns = in_turns(_servers(ring, judged, span), rounds, _told)
            once: Turns = in_turns(_servers(ring, others, span), 1, _told)
            loops_of = {rows: _loops(ring, alone, arguments.cache, rows, span.seconds) for rows in ROWS}
            measures: Measures = {
                (kind, rows): loop for rows, kinds in loops_of.items() for kind, loop in kinds.items()
            }
            ticks = _ticks(in_turns(measures, rounds, _told))
        by_cells = [_of_cells(nr_cells, load, alone, arguments.cache, span) for nr_cells in ((64,) if quick else CELLS)]
    figures = {point: _median(turns, point) for point in turns[0]} | {point: _median(once, point) for point in once[0]}
    ratios = _ratios(turns, ticks)
    report = {
        "machine": machine(),
        "code": arguments.code,
        "servers": [
            {"system": system, "sessions": sessions, "chunk": chunk, **(asdict(found) if found else {FAILED: True})}
            for (system, sessions, chunk), found in figures.items()
        ],
        "ticks_us": ticks,
        "by_memory_slots": by_cells,
        "ratios": [ratio.as_dict() for ratio in ratios],
    }
    text = f"{markdown_ratios(ratios)}\n\n{_tables(ticks, by_cells, figures)}"
    finish("compare", report, text, arguments.docs, partial(plots.draw_comparison, report))


def _servers(ring: Arena, points: Iterable[tuple[int, int]], span: Span) -> Measures:
    return {
        (name, sessions, chunk): partial(system.load, sessions, chunk, span)
        for sessions, chunk in sorted(points)
        for name, system in ring.systems.items()
    }


def _loops(ring: Arena, alone: Aside, cache: Path, rows: int, seconds: float) -> Measures:
    """Microseconds of a tick of so many rows in a bare loop, by what is stepped."""
    package, sizes = str(dnc_package(cache)), loops.package_sizes(ring.artifact)
    return {
        PACKAGE: partial(alone.run, loops.package_tick_us, package, sizes, rows, seconds),
        TORCHSCRIPT: partial(alone.run, loops.torchscript_tick_us, ring.artifact, rows, seconds),
        KERNEL: partial(alone.run, loops.kernel_tick_us, ring.artifact, rows, seconds),
    }


def _ticks(turns: Turns) -> dict[str, dict[str, float]]:
    """The medians over the rounds, by what was stepped and the rows."""
    ticks: dict[str, dict[str, float]] = {}
    for kind, rows in turns[0]:
        ticks.setdefault(kind, {})[str(rows)] = statistics.median(turn[kind, rows] for turn in turns)
    return ticks


def _of_cells(nr_cells: int, load: Aside, alone: Aside, cache: Path, span: Span) -> dict[str, Any]:
    """Timesteps a second of 64 sessions, and of bare loops over 64 rows, of a model with so many memory slots."""
    with arena(MODEL, nr_cells, CELLS_SLOTS, MANY, "auto", load, cache) as ring:
        bare = _loops(ring, alone, cache, MANY, span.seconds)
        measures = {**_servers(ring, {(MANY, CHUNK)}, span), **bare}
        turns: Turns = in_turns(measures, 1, lambda line: _told(f"{nr_cells} memory slots, {line}"))
    (turn,) = turns
    rates = {kind: MANY * 1e6 / turn[kind] for kind in bare}
    for name in ring.systems:
        found = turn[name, MANY, CHUNK]
        if found is not None:
            rates[name] = found.timesteps_per_s
    return {"nr_cells": nr_cells, "timesteps_per_s": {name: round(rate) for name, rate in rates.items()}}


def _median(turns: Turns, point: Any) -> Figures | None:
    """The medians over the rounds; None if the server did not live through one of them."""
    found = [turn[point] for turn in turns]
    if None in found:
        return None
    names = ("calls", "p50_ms", "p99_ms", "timesteps_per_s")
    return Figures(*(statistics.median(getattr(one, name) for one in found) for name in names))


def _ratios(turns: Turns, ticks: Mapping[str, Mapping[str, float]]) -> list[Ratio]:
    """What was reached of what should be; without those of points that were not measured, or not lived through."""

    def between(first: Point, second: Point, figure: str) -> float | None:
        pairs = [(turn.get(first), turn.get(second)) for turn in turns]
        if any(None in pair for pair in pairs):
            return None
        return statistics.median(float(getattr(one, figure) / getattr(other, figure)) for one, other in pairs)

    rate, p50 = "timesteps_per_s", "p50_ms"
    asked: list[tuple[str, float | None, dict[str, float]]] = []
    for ours in (OURS,):
        asked += [
            (f"p50 of 1 session: {ours} / {TRITON}", between((ours, 1, 1), (TRITON, 1, 1), p50), {"at_most": 0.5}),
            (f"p50 of 1 session: afternoon / {ours}", between((AFTERNOON, 1, 1), (ours, 1, 1), p50), {"at_least": 8.0}),
        ]
        for chunk in (1, CHUNK):
            value = between((ours, MANY, chunk), (TRITON, MANY, chunk), rate)
            asked.append(
                (f"timesteps/s of {MANY} sessions, chunks of {chunk}: {ours} / {TRITON}", value, {"at_least": 2.0})
            )
        for sessions in (MANY, 1_000):
            value = between((ours, sessions, 1), (AFTERNOON, sessions, 1), rate)
            asked.append((f"timesteps/s of {sessions:,} sessions: {ours} / afternoon", value, {"at_least": 10.0}))
        value = between((ours, 10_000, CHUNK), (ours, MANY, CHUNK), rate)
        name = f"timesteps/s, chunks of {CHUNK}: 10,000 sessions at random / {MANY} sessions, {ours}"
        asked.append((name, value, {"at_least": 0.8}))
    for other, aims in ((TORCHSCRIPT, (20.0, 4.0, 4.0)), (PACKAGE, (5.0, 5.0, 5.0))):
        for rows, aim in zip(map(str, ROWS), aims, strict=True):
            value = ticks[other][rows] / ticks[KERNEL][rows]
            asked.append((f"tick of {rows} rows: {other} / {KERNEL}", value, {"at_least": aim}))
    return [Ratio(name, value, **aim) for name, value, aim in asked if value is not None]


def _tables(
    ticks: Mapping[str, Mapping[str, float]],
    by_cells: Sequence[Mapping[str, Any]],
    figures: Mapping[Any, Figures | None],
) -> str:
    """All tables of the comparison."""
    measured = {system for system, _, _ in figures}
    columns = [name for name in (OURS, TRITON, AFTERNOON, ECHO) if name in measured]
    points = sorted({(sessions, chunk) for _, sessions, chunk in figures})

    def cells(figure: Callable[[Figures], str]) -> list[list[str]]:
        rows = []
        for sessions, chunk in points:
            found = [figures[name, sessions, chunk] for name in columns]
            rows.append([f"{sessions:,}", str(chunk), *(figure(one) if one else FAILED for one in found)])
        return rows

    head = ["sessions", "chunk", *columns]
    kinds = (OURS, TRITON, AFTERNOON, ECHO, KERNEL, TORCHSCRIPT, PACKAGE)
    of_cells = [
        [f"{row['nr_cells']:,}", *(f"{rates[kind]:,}" if kind in rates else FAILED for kind in kinds)]
        for row in by_cells
        for rates in [row["timesteps_per_s"]]
    ]
    parts = [
        "Timesteps a second:",
        markdown_table(head, cells(lambda one: f"{one.timesteps_per_s:,.0f}")),
        "p50 and p99 of a call, ms:",
        markdown_table(head, cells(lambda one: f"{one.p50_ms:.2f}, {one.p99_ms:.2f}")),
        "A tick in a bare loop, µs, by the rows stepped together:",
        markdown_table(
            ["", *map(str, ROWS)], [[kind, *(f"{us:,.0f}" for us in ticks[kind].values())] for kind in ticks]
        ),
        f"Timesteps a second by the memory slots N of the model, {MANY} sessions, chunks of {CHUNK}; "
        f"of {KERNEL}, {TORCHSCRIPT} and {PACKAGE} in bare loops over {MANY} rows:",
        markdown_table(["N", *kinds], of_cells),
    ]
    return "\n\n".join(parts)


def _told(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
