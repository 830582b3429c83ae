"""This project beside what people use today, in one run: servers of the same model under the same load.

    python -m bench.compare [--serve FLAGS] [--docs docs] [--rounds 3] [--seconds 0.8] [--quick] [--cache FOLDER]

The axes: sessions from 1 to 10,000, timesteps of a chunk from 1 to 64, memory slots from 16 to 1,024. What is judged is
the median of some alternating runs, the rest of the axes is run once. Every server gets its load from bare stubs in the
same process, and those that speak Triton's protocol also from perf_analyzer; `bench.ticks` has the models without
servers. The first run installs the peers into the cache folder.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from bench import generated as generator
from bench.peers.afternoon import MODEL as HANDLER
from bench.peers.afternoon import afternoon
from bench.peers.setup import cache_folder, dnc_package, triton_python
from bench.peers.triton import triton
from bench.run import Run, number, ratio_table, table
from bench.servers import echo
from bench.unary import handler_load, triton_load
from dnc_serve.client.cli.load import Figures, Load, Server, Span, bits, median_figures, stream_load

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

Systems = Mapping[str, Callable[[int, int], Figures]]  # by sessions and chunk
Measured = dict[Any, Figures | None]  # by point; None for a server that did not live through it


def main() -> None:
    cache_flag = {"type": Path, "default": cache_folder(), "metavar": "FOLDER", "help": "of peers (%(default)s)"}
    with Run("compare", __doc__, rounds=3, seconds=0.8, cache=cache_flag) as run:
        judged, others = (QUICK_POINTS, set()) if run.quick else (JUDGED_POINTS, AXES_POINTS - JUDGED_POINTS)
        with systems(run, 1_024, max(sessions for sessions, _ in judged)) as all_of_them:
            turns = run.turns(_measures(all_of_them, judged))
            (once,) = run.turns(_measures(all_of_them, others), 1)
        cells: Measured = {}
        for nr_cells in () if run.quick else CELLS:  # at 1,024 memory slots a state takes 4 MiB
            with systems(run, MANY, MANY, nr_cells) as all_of_them:
                (turn,) = run.turns(_measures(all_of_them, {(MANY, CHUNK)}), 1)
                cells |= {(name, nr_cells): found for (name, _, _), found in turn.items()}
        generated, generated_table = generator.compare(run)
        figures: Measured = {point: _median([turn[point] for turn in turns]) for point in turns[0]} | once
        judge(run, turns)
        report = {
            "servers": [{"server": who, "sessions": n, "chunk": t, "figures": f} for (who, n, t), f in figures.items()],
            "by_perf_analyzer": [
                {"server": who, "calls": how, "sessions": n, "chunk": t, "figures": found}
                for (who, how, n, t), found in generated.items()
            ],
            "by_memory_slots": [{"server": who, "slots": n, "figures": found} for (who, n), found in cells.items()],
        }
        text = f"{ratio_table(run.ratios)}\n\n{_tables(figures, cells)}\n\nUnder perf_analyzer:\n\n{generated_table}"
        run.finish(text, report, partial(draw, figures, cells))


@contextmanager
def systems(run: Run, slots: int, most: int, nr_cells: int | None = None) -> Iterator[Systems]:
    """Starts every server with the same model, or for the `dnc` package with one of the same sizes."""
    cache, span = run.asked.cache, Span(run.seconds, 0.3)
    with run.served("--slots", str(slots), nr_cells=nr_cells) as ours, echo(ours.model.input_size) as floor:
        sizes = {name: ours.model.config[name] for name in PACKAGE_SIZES}
        with (
            triton(triton_python(cache), Path(ours.artifact), most + CALLERS) as its_triton,
            afternoon(dnc_package(cache), sizes) as package,
        ):

            def streams(server: Server, sessions: int, chunk: int) -> Figures:
                return run.load.run(stream_load, server, Load(sessions, min(sessions, CALLERS), chunk), span)

            def rows(server: Server, sessions: int, chunk: int) -> Figures:
                data = bits(chunk, server.input_size).tobytes()
                each = [{"session": f"{chunk}-{index}".encode(), "data": data} for index in range(sessions)]
                return run.load.run(handler_load, server, HANDLER, each, chunk, span)

            yield {
                OURS: partial(streams, ours.endpoint),
                TRITON: lambda sessions, chunk: run.load.run(triton_load, its_triton, sessions, chunk, span),
                AFTERNOON: partial(rows, package),
                ECHO: partial(streams, floor),
            }


def _measures(all_of_them: Systems, points: Iterable[tuple[int, int]]) -> dict[Any, Callable[[], Any]]:
    def survived(name: str, sessions: int, chunk: int) -> Figures | None:
        try:
            return all_of_them[name](sessions, chunk)
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


def judge(run: Run, turns: Sequence[Mapping[Any, Any]]) -> None:
    """What was reached of what should be; without those of points that were not measured, or not lived through."""
    for figure, above, below, aim in AIMS:
        pairs = [(turn.get(above), turn.get(below)) for turn in turns]
        if all(one and other for one, other in pairs):
            names = (f"{who}, {sessions:,} × {chunk}" for who, sessions, chunk in (above, below))
            ratios = [getattr(one, figure) / getattr(other, figure) for one, other in pairs]
            run.ratio(f"{FIGURES[figure]}: {' / '.join(names)}", ratios, **aim)


def _tables(figures: Measured, cells: Measured) -> str:
    columns = list(dict.fromkeys(name for name, _, _ in figures))
    points = sorted({(sessions, chunk) for _, sessions, chunk in figures})

    def figures_table(shown: Callable[[Figures], str]) -> str:
        rows = []
        for sessions, chunk in points:
            found = (figures[name, sessions, chunk] for name in columns)
            rows.append([f"{sessions:,}", str(chunk), *(shown(one) if one else "failed" for one in found)])
        return table(["sessions", "chunk", *columns], rows)

    parts = [
        *("Timesteps a second:", figures_table(lambda one: number(one.timesteps_per_s))),
        *("p50 and p99 of a call, ms:", figures_table(lambda one: f"{number(one.p50_ms)}, {number(one.p99_ms)}")),
        *("µs of the server's processor time a call:", figures_table(lambda one: number(one.server_us))),
    ]
    if cells:
        rows = []
        for nr_cells in CELLS:
            found = (cells[name, nr_cells] for name in columns)
            rows.append([f"{nr_cells:,}", *(number(one.timesteps_per_s) if one else "failed" for one in found)])
        parts.append(f"Timesteps a second by the memory slots N of the model, {MANY} sessions, chunks of {CHUNK}:")
        parts.append(table(["N", *columns], rows))
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
