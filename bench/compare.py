"""This project beside what people use today, in one run: servers of the same model under the same load.

    python -m bench.compare [--serve FLAGS] [--docs docs] [--rounds 3] [--seconds 0.8] [--quick] [--cache FOLDER]

The axes: sessions from 1 to 10,000, timesteps of a chunk from 1 to 64, memory slots from 16 to 1,024. What is judged is
the median of some alternating runs, the rest of the axes is run once. Every server gets its load from bare stubs in the
same process; `bench/ticks.py` has the models without servers. The first run installs the peers into the cache folder.
"""

import json
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from bench.peers.afternoon import MODEL as HANDLER
from bench.peers.afternoon import afternoon
from bench.peers.setup import cache_folder, dnc_package, triton_python
from bench.peers.triton import triton
from bench.report import Ratio, finish, markdown_ratios, markdown_table, number, parser_of
from bench.servers import MODEL, Aside, aside, echo, served
from bench.unary import handler_load, triton_load
from dnc_serve.client.cli.bench import told
from dnc_serve.client.cli.load import Figures, Load, Server, Span, in_turns, median_figures, stream_load

OURS, TRITON, AFTERNOON, ECHO = "dnc-serve", "Triton", "TorchServe in an afternoon", "empty echo"
MANY, CHUNK, MANY_CELLS, CALLERS = 64, 16, 1_024, 64  # more sessions than callers are gone round, or taken at random
QUICK_POINTS = {(1, 1), (MANY, 1), (MANY, CHUNK)}  # sessions, chunk
JUDGED_POINTS = QUICK_POINTS | {(1_000, 1), (10_000, CHUNK)}
SESSIONS, CHUNKS, CELLS = (1, 8, 64, 1_000, 10_000), (1, 4, 16, 64), (16, 64, 256, MANY_CELLS)
AXES_POINTS = {(sessions, chunk) for sessions in SESSIONS for chunk in (1, CHUNK)} | {(MANY, each) for each in CHUNKS}
# What the `dnc` package's class and ours both take.
PACKAGE_SIZES = (
    "input_size", "hidden_size", "rnn_type", "num_layers", "num_hidden_layers", "bias", "nr_cells", "read_heads",
    "cell_size", "nonlinearity", "independent_linears", "share_memory",
)  # fmt: skip
RATE, P50, COST = "timesteps_per_s", "p50_ms", "server_us"
FIGURES = {RATE: "timesteps/s", P50: "p50", COST: "processor time a chunk"}
Point = tuple[str, int, int]  # system, sessions, chunk
# A figure at one point divided by that at another, and what it should be.
AIMS: tuple[tuple[str, Point, Point, dict[str, float]], ...] = (
    (P50, (OURS, 1, 1), (TRITON, 1, 1), {"at_most": 0.5}),
    (P50, (AFTERNOON, 1, 1), (OURS, 1, 1), {"at_least": 8.0}),
    (RATE, (OURS, MANY, 1), (TRITON, MANY, 1), {"at_least": 2.0}),
    (RATE, (OURS, MANY, CHUNK), (TRITON, MANY, CHUNK), {"at_least": 1.5}),
    (COST, (OURS, MANY, 1), (TRITON, MANY, 1), {"at_most": 0.5}),
    (RATE, (OURS, MANY, 1), (AFTERNOON, MANY, 1), {"at_least": 10.0}),
    (RATE, (OURS, 1_000, 1), (AFTERNOON, 1_000, 1), {"at_least": 10.0}),
    (RATE, (OURS, 10_000, CHUNK), (OURS, MANY, CHUNK), {"at_least": 0.8}),
)

Systems = Mapping[str, Callable[[int, int, Span], Figures]]  # by sessions, chunk and span
Measured = dict[Any, Figures | None]  # by point; None for a server that did not live through it


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--seconds", type=float, default=0.8, help="of each run (%(default)s)")
    parser.add_argument("--cache", type=Path, default=cache_folder(), metavar="FOLDER", help="of peers (%(default)s)")
    arguments = parser.parse_args()
    quick, cache, flags = arguments.quick, arguments.cache, shlex.split(arguments.serve)
    rounds, span = (1, Span(0.2, 0.1)) if quick else (arguments.rounds, Span(arguments.seconds, 0.3))
    judged, others = (QUICK_POINTS, set()) if quick else (JUDGED_POINTS, AXES_POINTS - JUDGED_POINTS)
    cells: Measured = {}
    with aside() as load:
        with systems(load, cache, ("--slots", "1024", *flags), max(sessions for sessions, _ in judged)) as all_of_them:
            turns = in_turns(_measures(all_of_them, judged, span), rounds, told)
            once = in_turns(_measures(all_of_them, others, span), 1, told)
        for nr_cells in () if quick else CELLS:  # at 1,024 memory slots a state takes 4 MiB
            with systems(load, cache, ("--slots", "64", *flags), MANY, nr_cells) as all_of_them:
                (turn,) = in_turns(_measures(all_of_them, {(MANY, CHUNK)}, span), 1, told)
                cells |= {(name, nr_cells): found for (name, _, _), found in turn.items()}
    told("")
    figures: Measured = {point: _median([turn[point] for turn in turns]) for point in turns[0]} | once[0]
    ratios = _ratios(turns)
    report = {
        "ratios": ratios,
        "servers": [{"server": who, "sessions": n, "chunk": t, "figures": f} for (who, n, t), f in figures.items()],
        "by_memory_slots": [{"server": who, "slots": n, "figures": found} for (who, n), found in cells.items()],
    }
    text = f"{markdown_ratios(ratios)}\n\n{_tables(figures, cells)}"
    finish("compare", arguments, text, report, partial(draw, figures, cells))


@contextmanager
def systems(
    load: Aside, cache: Path, flags: Sequence[str], most: int, nr_cells: int | None = None
) -> Iterator[Systems]:
    """Starts every server with the same model, or for the `dnc` package with one of the same sizes."""
    more = () if nr_cells is None else ("--nr-cells", str(nr_cells))
    with ExitStack() as stack:
        ours = stack.enter_context(served(MODEL, *flags, *more))
        artifact = Path(ours.artifact(MODEL, nr_cells))
        config = json.loads((artifact / "manifest.json").read_text())["config"]
        size = config["input_size"]
        its_triton = stack.enter_context(triton(triton_python(cache), artifact, most + CALLERS))
        package = stack.enter_context(afternoon(dnc_package(cache), {name: config[name] for name in PACKAGE_SIZES}))
        floor = stack.enter_context(echo(size))

        def streams(server: Server, sessions: int, chunk: int, span: Span) -> Figures:
            return load.run(stream_load, server, Load(sessions, min(sessions, CALLERS), chunk), span)

        yield {
            OURS: partial(streams, ours.endpoint),
            TRITON: lambda sessions, chunk, span: load.run(triton_load, its_triton, sessions, chunk, size, span),
            AFTERNOON: lambda sessions, chunk, span: load.run(
                handler_load, package, HANDLER, sessions, chunk, size, span
            ),
            ECHO: partial(streams, floor),
        }


def _measures(all_of_them: Systems, points: Iterable[tuple[int, int]], span: Span) -> dict[Any, Callable[[], Any]]:
    def survived(name: str, sessions: int, chunk: int) -> Figures | None:
        try:
            return all_of_them[name](sessions, chunk, span)
        except (grpc.RpcError, RuntimeError, OSError) as exc:
            if name == OURS:
                raise
            print(f"{name} did not answer {sessions} sessions with chunks of {chunk}: {exc}", file=sys.stderr)
            return None

    return {
        (name, sessions, chunk): partial(survived, name, sessions, chunk)
        for sessions, chunk in sorted(points)
        for name in all_of_them
    }


def _median(figures: Sequence[Figures | None]) -> Figures | None:
    alive = [one for one in figures if one is not None]
    return median_figures(alive) if len(alive) == len(figures) else None


def _ratios(turns: Sequence[Mapping[Any, Any]]) -> list[Ratio]:
    """What was reached of what should be; without those of points that were not measured, or not lived through."""
    ratios = []
    for figure, above, below, aim in AIMS:
        pairs = [(turn.get(above), turn.get(below)) for turn in turns]
        if all(one and other for one, other in pairs):
            value = statistics.median(getattr(one, figure) / getattr(other, figure) for one, other in pairs)
            names = (f"{who}, {sessions:,} × {chunk}" for who, sessions, chunk in (above, below))
            ratios.append(Ratio(f"{FIGURES[figure]}: {' / '.join(names)}", value, **aim))
    return ratios


def _tables(figures: Measured, cells: Measured) -> str:
    columns = list(dict.fromkeys(name for name, _, _ in figures))
    points = sorted({(sessions, chunk) for _, sessions, chunk in figures})

    def table(shown: Callable[[Figures], str]) -> str:
        rows = []
        for sessions, chunk in points:
            found = (figures[name, sessions, chunk] for name in columns)
            rows.append([f"{sessions:,}", str(chunk), *(shown(one) if one else "failed" for one in found)])
        return markdown_table(["sessions", "chunk", *columns], rows)

    parts = [
        *("Timesteps a second:", table(lambda one: number(one.timesteps_per_s))),
        *("p50 and p99 of a call, ms:", table(lambda one: f"{number(one.p50_ms)}, {number(one.p99_ms)}")),
        *("µs of the server's processor time a call:", table(lambda one: number(one.server_us))),
    ]
    if cells:
        rows = []
        for nr_cells in CELLS:
            found = (cells[name, nr_cells] for name in columns)
            rows.append([f"{nr_cells:,}", *(number(one.timesteps_per_s) if one else "failed" for one in found)])
        parts.append(f"Timesteps a second by the memory slots N of the model, {MANY} sessions, chunks of {CHUNK}:")
        parts.append(markdown_table(["N", *columns], rows))
    return "\n\n".join(parts)


def draw(figures: Measured, cells: Measured, folder: Path) -> dict[str, str]:
    """Timesteps a second along the axes; what each plot shows, by its file."""
    from matplotlib.figure import Figure

    def along(axis: int, at: int, value: int) -> list[tuple[str, int, float]]:
        """Of the points that have a value at another axis."""
        return [(key[0], key[axis], one.timesteps_per_s) for key, one in figures.items() if one and key[at] == value]

    plots = {
        "sessions-1": ("sessions, chunks of 1", along(1, 2, 1)),
        f"sessions-{CHUNK}": (f"sessions, chunks of {CHUNK}", along(1, 2, CHUNK)),
        "chunk": (f"timesteps of a chunk, {MANY} sessions", along(2, 1, MANY)),
        "memory-slots": (
            f"memory slots of the model, {MANY} sessions, chunks of {CHUNK}",
            [(who, nr_cells, one.timesteps_per_s) for (who, nr_cells), one in cells.items() if one],
        ),
    }
    shown = {}
    for name, (label, points) in plots.items():
        if not points:
            continue
        figure = Figure(figsize=(6.5, 4), layout="constrained")
        axes = figure.subplots()
        for who in dict.fromkeys(each for each, _, _ in points):
            line = sorted((x, y) for each, x, y in points if each == who)
            axes.plot(*zip(*line, strict=True), marker="o", markersize=4, label=who)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({x for _, x, _ in points})
        axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
        axes.set_xlabel(label)
        axes.set_ylabel("timesteps a second")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(folder / f"performance-{name}.svg", metadata={"Date": None})
        shown[f"performance-{name}.svg"] = f"Timesteps a second by {label}"
    return shown


if __name__ == "__main__":
    main()
