"""This project beside what people use today, in one run: servers under the same load, and models in a bare loop.

    python -m bench.compare [--docs docs] [--compile] [--rounds 3] [--seconds 1.0] [--quick] [--cache FOLDER]

The axes: sessions from 1 to 10,000, timesteps of a chunk from 1 to 64, memory slots from 16 to 1,024. With `--docs` the
table, the plots and the figures as JSON are written there. The first run installs the peers into the cache folder, and
with `--compile` compiles our artifact there, which takes minutes.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import loops, plots
from bench.peers.cache import cache_folder, dnc_package
from bench.report import finish, markdown_ratios, markdown_table, parser_of
from bench.systems import AFTERNOON, ECHO, OURS, TRITON, Arena, Door, arena
from dnc_serve.client.cli.measure import bare
from dnc_serve.client.cli.measure.aside import Aside, aside
from dnc_serve.client.cli.measure.load import model_of
from dnc_serve.client.cli.measure.lockstep import Figures, Span
from dnc_serve.client.cli.measure.rounds import Ratio, Turn, in_turns, machine, median_of
from dnc_serve.client.cli.measure.served import served
from dnc_serve.model.dnc import DNC
from dnc_serve.model.weights import save_weights

MODEL = "copy"
SESSIONS = (1, 8, 64, 1_000, 10_000)
CHUNKS = (1, 4, 16, 64)
CELLS = (16, 64, 256, 1_024)
ROWS = (1, 8, 64)
MANY, CHUNK, SLOTS = 64, 16, 1_024
CELLS_SLOTS = 64  # at 1,024 memory slots a state takes 4 MiB
PACKAGE, TORCHSCRIPT, COMPILED = "the dnc package", "our TorchScript", "our AOTInductor"
README_SIZES = {
    "input_size": 64, "hidden_size": 128, "rnn_type": "lstm", "num_layers": 4, "num_hidden_layers": 1, "nr_cells": 100,
    "cell_size": 32, "read_heads": 4,
}  # fmt: skip

Point = tuple[str, int, int]  # system, sessions, chunk


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="alternating runs of each point (3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run (1.0)")
    parser.add_argument(
        "--cache", type=Path, default=cache_folder(), metavar="FOLDER", help="of the peers (%(default)s)"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    rounds, span = (1, Span(0.3, 0.2)) if quick else (arguments.rounds, Span(arguments.seconds, 0.4))
    points = {(1, 1), (MANY, 1), (MANY, CHUNK)}
    if not quick:
        points |= {(sessions, chunk) for sessions in SESSIONS for chunk in (1, CHUNK)}
        points |= {(MANY, chunk) for chunk in CHUNKS}

    with aside() as load, aside() as alone:
        with arena(MODEL, None, SLOTS, max(SESSIONS), arguments.compile, load, arguments.cache) as ring:
            turns = in_turns(_measures(ring, points, span), rounds, _told)
            ticks = _ticks(ring, alone, arguments, rounds, span.seconds)
        by_cells = _by_cells((64,) if quick else CELLS, arguments.compile, load, alone, arguments, rounds, span)
        readme = None if quick else _of_readme_size(arguments.compile, load, alone, rounds, span)
    figures = {point: _median(turns, point) for point in turns[0]}
    ratios = _ratios(turns, ticks, readme)
    report = {
        "machine": machine(),
        "compiled": arguments.compile,
        "servers": [
            {"system": system, "sessions": sessions, "chunk": chunk, **(asdict(found) if found else {"died": True})}
            for (system, sessions, chunk), found in figures.items()
        ],
        "ticks_us": ticks,
        "by_memory_slots": by_cells,
        "readme_size": readme,
        "ratios": [ratio.as_dict() for ratio in ratios],
    }
    text = f"{_tables(ticks, by_cells, figures)}\n\n{markdown_ratios(ratios)}"
    finish("compare", report, text, arguments.docs)
    if arguments.docs:
        plots.draw_comparison(report, arguments.docs / "images")


def _measures(ring: Arena, points: set[tuple[int, int]], span: Span) -> dict[Any, Callable[[], Any]]:
    return {
        (name, sessions, chunk): partial(system.load, sessions, chunk, span)
        for sessions, chunk in sorted(points)
        for name, system in ring.systems.items()
    }


def _ticks(
    ring: Arena, alone: Aside, arguments: argparse.Namespace, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Microseconds of a tick in a bare loop, by the rows."""
    package, sizes = str(dnc_package(arguments.cache)), loops.package_sizes(ring.artifact)
    measures: dict[Any, Callable[[], Any]] = {}
    for rows in ROWS:
        measures[PACKAGE, rows] = partial(alone.run, loops.package_tick_us, package, sizes, rows, seconds)
        measures[TORCHSCRIPT, rows] = partial(alone.run, loops.torchscript_tick_us, ring.artifact, rows, seconds)
        if arguments.compile:
            compiled = str(ring.ours.compiled_cache)
            measures[COMPILED, rows] = partial(
                alone.run, loops.compiled_tick_us, ring.artifact, compiled, rows, seconds
            )
    turns = in_turns(measures, rounds, _told)
    kinds = dict.fromkeys(kind for kind, _ in measures)
    return {kind: {str(rows): statistics.median(turn[kind, rows] for turn in turns) for rows in ROWS} for kind in kinds}


def _by_cells(
    cells: Sequence[int], compiled: bool, load: Aside, alone: Aside, arguments: argparse.Namespace,
    rounds: int, span: Span,
) -> list[dict[str, Any]]:  # fmt: skip
    """Timesteps a second of 64 sessions, and of bare loops over 64 rows, by the memory slots of the model."""
    found = []
    for nr_cells in cells:
        with arena(MODEL, nr_cells, CELLS_SLOTS, MANY, compiled, load, arguments.cache) as ring:
            measures = _measures(ring, {(MANY, CHUNK)}, span)
            package, sizes = str(dnc_package(arguments.cache)), loops.package_sizes(ring.artifact)
            measures[PACKAGE] = partial(alone.run, loops.package_tick_us, package, sizes, MANY, span.seconds)
            measures[TORCHSCRIPT] = partial(alone.run, loops.torchscript_tick_us, ring.artifact, MANY, span.seconds)
            turns = in_turns(measures, rounds, lambda line, cells=nr_cells: _told(f"{cells} memory slots, {line}"))
            rates = {PACKAGE: 0.0, TORCHSCRIPT: 0.0}
            for kind in rates:
                rates[kind] = MANY * 1e6 / statistics.median(turn[kind] for turn in turns)
            for name in ring.systems:
                point = _median(turns, (name, MANY, CHUNK))
                if point:
                    rates[name] = point.timesteps_per_s
            found.append({"nr_cells": nr_cells, "timesteps_per_s": {name: round(rate) for name, rate in rates.items()}})
    return found


def _of_readme_size(compiled: bool, load: Aside, alone: Aside, rounds: int, span: Span) -> dict[str, float]:
    """A model of the size that the `dnc` package's README shows: 64 sessions served, beside the bare loop of tiles."""
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as folder:
        torch.manual_seed(0)
        save_weights(DNC(**README_SIZES), Path(folder))
        with served(folder, "--slots", str(MANY), compiled=compiled) as server:
            door = Door(server.grpc, load.run(model_of, server.grpc)[0], load)
            unroll = (bare.timesteps_per_s, server.artifact(folder), "cpu", str(server.compiled_cache), CHUNK)
            # A chunk of all sessions takes about a second: a fraction of them would be a rough figure.
            longer = Span(span.seconds * 8, span.warm_up_s * 4)
            turns = in_turns(
                {
                    "served": partial(door.load, MANY, CHUNK, longer),
                    "bare": partial(alone.run, *unroll, longer.seconds / 2),
                },
                rounds,
                _told,
            )
    return {
        "served": median_of(turns, lambda turn: turn["served"].timesteps_per_s),
        "bare": median_of(turns, lambda turn: turn["bare"]),
        "ratio": median_of(turns, lambda turn: turn["served"].timesteps_per_s / turn["bare"]),
    }


def _median(turns: Sequence[Turn], point: Any) -> Figures | None:
    """The medians over the rounds; None if the server did not live through one of them."""
    found = [turn[point] for turn in turns]
    if None in found:
        return None
    names = ("calls", "p50_ms", "p99_ms", "timesteps_per_s")
    return Figures(*(statistics.median(getattr(one, name) for one in found) for name in names))


def _ratios(
    turns: Sequence[Turn], ticks: Mapping[str, Mapping[str, float]], readme: Mapping[str, float] | None
) -> list[Ratio]:
    def between(one: Point, other: Point, figure: str) -> float | None:
        pairs = [(turn.get(one), turn.get(other)) for turn in turns]
        if any(None in pair for pair in pairs):
            return None
        return statistics.median(getattr(first, figure) / getattr(second, figure) for first, second in pairs)

    rate, p50 = "timesteps_per_s", "p50_ms"
    asked: list[tuple[str, float | None, dict[str, float]]] = [
        ("p50 of 1 session: ours / Triton's", between((OURS, 1, 1), (TRITON, 1, 1), p50), {"at_most": 0.5}),
        ("p50 of 1 session: afternoon's / ours", between((AFTERNOON, 1, 1), (OURS, 1, 1), p50), {"at_least": 8.0}),
    ]
    for chunk in (1, CHUNK):
        value = between((OURS, MANY, chunk), (TRITON, MANY, chunk), rate)
        asked.append((f"timesteps/s of {MANY} sessions, chunks of {chunk}: ours / Triton's", value, {"at_least": 2.0}))
    for sessions in (MANY, 1_000):
        value = between((OURS, sessions, 1), (AFTERNOON, sessions, 1), rate)
        asked.append((f"timesteps/s of {sessions:,} sessions: ours / afternoon's", value, {"at_least": 10.0}))
    value = between((OURS, 10_000, CHUNK), (OURS, MANY, CHUNK), rate)
    asked.append(
        (f"timesteps/s, chunks of {CHUNK}: 10,000 sessions at random / {MANY} sessions", value, {"at_least": 0.8})
    )
    for rows in map(str, ROWS):
        if COMPILED in ticks:
            for other, aim in ((TORCHSCRIPT, 2.0), (PACKAGE, 5.0)):
                value = ticks[other][rows] / ticks[COMPILED][rows]
                asked.append((f"tick of {rows} rows: {other} / AOTInductor", value, {"at_least": aim}))
        else:
            asked.append(
                (
                    f"tick of {rows} rows: {PACKAGE} / TorchScript",
                    ticks[PACKAGE][rows] / ticks[TORCHSCRIPT][rows],
                    {"at_least": 1.0},
                )
            )
    if readme:
        asked.append(
            (
                f"model of README size, {MANY} sessions, chunks of {CHUNK}: served / bare",
                readme["ratio"],
                {"at_least": 0.9},
            )
        )
    return [Ratio(name, value, **aim) for name, value, aim in asked if value is not None]


def _tables(
    ticks: Mapping[str, Mapping[str, float]],
    by_cells: Sequence[Mapping[str, Any]],
    figures: Mapping[Any, Figures | None],
) -> str:
    """All tables of the comparison."""
    columns = (OURS, TRITON, AFTERNOON, ECHO)
    points = sorted({(sessions, chunk) for _, sessions, chunk in figures})

    def cells(figure: Callable[[Figures], str]) -> list[list[str]]:
        rows = []
        for sessions, chunk in points:
            found = [figures[name, sessions, chunk] for name in columns]
            rows.append([f"{sessions:,}", str(chunk), *(figure(one) if one else "died" for one in found)])
        return rows

    head = ["sessions", "chunk", *columns]
    kinds = list(by_cells[0]["timesteps_per_s"])
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
        f"bare loops over {MANY} rows:",
        markdown_table(
            ["N", *kinds],
            [
                [f"{row['nr_cells']:,}", *(f"{row['timesteps_per_s'].get(kind, float('nan')):,.0f}" for kind in kinds)]
                for row in by_cells
            ],
        ),
    ]
    return "\n\n".join(parts)


def _told(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
