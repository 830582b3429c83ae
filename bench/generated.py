"""Triton and this project under NVIDIA's perf_analyzer, a load generator that nobody here wrote: one command line for
both, in turns."""

import csv
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.setup import perf_analyzer, triton_python
from bench.peers.triton import triton
from bench.run import Run, number, table
from bench.servers import MODEL
from dnc_serve.client.cli.load import Figures, Server, median_figures, processor_s

OURS, TRITON = "dnc-serve", "Triton"
UNARY, STREAMING = "unary", "streaming"
CHUNK, MANY = 16, 64
SEQUENCE_CHUNKS = 300
# A load generator's requests: fewer where one waits for the other.
REQUESTS, LONE_REQUESTS, QUICK_REQUESTS = 6_000, 2_000, 400
POINTS = [
    (how, sequences, chunk)
    for how, sequences in ((UNARY, 1), (STREAMING, 1), (STREAMING, 8), (STREAMING, 16), (UNARY, MANY))
    for chunk in (1, CHUNK)
]
QUICK_POINTS = [(UNARY, 1, 1), (STREAMING, 16, 1)]
LAST_POINT = (STREAMING, MANY, 1)  # Triton's server may not live through it
Point = tuple[str, str, int, int]  # system, how, sequences, chunk
# A figure at one point divided by that at another, and what it should be.
AIMS: tuple[tuple[str, Point, Point, dict[str, float]], ...] = (
    ("p50_ms", (OURS, UNARY, 1, 1), (TRITON, UNARY, 1, 1), {"at_most": 0.5}),
    ("timesteps_per_s", (OURS, STREAMING, 16, 1), (TRITON, STREAMING, 16, 1), {"at_least": 1.5}),
    ("timesteps_per_s", (OURS, UNARY, MANY, 1), (TRITON, UNARY, MANY, 1), {"at_least": 1.0}),
    ("server_us", (OURS, UNARY, MANY, 1), (TRITON, UNARY, MANY, 1), {"at_most": 1.0}),
    ("timesteps_per_s", (OURS, *LAST_POINT), (TRITON, UNARY, MANY, 1), {"at_least": 1.5}),
)
NAMES = {"p50_ms": "p50", "timesteps_per_s": "timesteps/s", "server_us": "processor time a call"}

Measured = dict[Any, Figures | None]


def compare(run: Run) -> tuple[Measured, str]:
    """The figures by point, None for a server that did not live through it, and their table."""
    cache = run.asked.cache
    command = perf_analyzer(cache)
    points = QUICK_POINTS if run.quick else POINTS
    with run.served() as ours, _triton(cache, Path(ours.artifact)) as its_triton:
        servers = {OURS: (ours.endpoint, MODEL), TRITON: (its_triton, "dnc")}
        measures = _measures(command, servers, points, run.quick)
        turns = run.turns(measures)
        if not run.quick:
            for turn in turns:
                turn |= {(OURS, *LAST_POINT): _survived(command, *servers[OURS], LAST_POINT, REQUESTS)}
            turns[-1][TRITON, *LAST_POINT] = _survived(command, *servers[TRITON], LAST_POINT, REQUESTS)
    for figure, above, below, aim in AIMS:
        pairs = [(turn.get(above), turn.get(below)) for turn in turns]
        if all(one and other for one, other in pairs):
            names = " / ".join(f"{who}, {how}, {sequences} × {chunk}" for who, how, sequences, chunk in (above, below))
            ratios = [getattr(one, figure) / getattr(other, figure) for one, other in pairs]
            run.ratio(f"by perf_analyzer, {NAMES[figure]}: {names}", ratios, **aim)
    found: Measured = {}
    for point in dict.fromkeys(point for turn in turns for point in turn):
        alive = [turn[point] for turn in turns if point in turn]
        found[point] = median_figures([one for one in alive if one]) if all(alive) else None
    return found, _table(found)


@contextmanager
def _triton(cache: Path, artifact: Path) -> Iterator[Server]:
    with triton(triton_python(cache), artifact, 2 * MANY) as server:
        yield server


def _measures(
    command: Sequence[str],
    servers: Mapping[str, tuple[Server, str]],
    points: Sequence[tuple[str, int, int]],
    quick: bool,
) -> dict[Any, Callable[[], Figures | None]]:
    def requests(sequences: int) -> int:
        return QUICK_REQUESTS if quick else LONE_REQUESTS if sequences == 1 else REQUESTS

    return {
        (name, *point): partial(_survived, command, server, model, point, requests(point[1]))
        for point in points
        for name, (server, model) in servers.items()
    }


def _survived(
    command: Sequence[str], server: Server, model: str, point: tuple[str, int, int], requests: int
) -> Figures | None:
    try:
        return generated_load(command, server, model, point, requests)
    except RuntimeError as exc:
        if model == MODEL:
            raise
        print(f"Triton did not answer {point}: {exc}", file=sys.stderr)
        return None


def generated_load(
    command: Sequence[str], server: Server, model: str, point: tuple[str, int, int], requests: int
) -> Figures:
    """What perf_analyzer reports of so many requests. Raises RuntimeError with what it says where it fails."""
    how, sequences, chunk = point
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        asked = ["-m", model, "-i", "grpc", "-u", server.address, "--shape", f"INPUT:{chunk},{server.input_size}"]
        asked += ["--concurrency-range", str(sequences), "--sequence-length", str(SEQUENCE_CHUNKS)]
        asked += ["--request-count", str(requests), *(["--streaming"] if how == STREAMING else []), "-f", str(report)]
        spent = processor_s(server.pids)
        ran = subprocess.run([*command, *asked], capture_output=True, text=True, timeout=600, check=False)
        spent = processor_s(server.pids) - spent
        if ran.returncode != 0 or not report.is_file():
            raise RuntimeError(
                (ran.stderr or ran.stdout).strip()[-500:] or f"perf_analyzer ended with {ran.returncode}"
            )
        (row,) = csv.DictReader(report.read_text().splitlines())
    p50, p99 = (float(row[f"p{part} latency"]) / 1000 for part in (50, 99))
    rate = float(row["Inferences/Second"]) * chunk
    return Figures(requests, p50, p99, rate, spent / requests * 1e6)


def _table(found: Measured) -> str:
    rows = []
    for how, sequences, chunk in dict.fromkeys(point[1:] for point in found):
        row = [how, str(sequences), str(chunk)]
        for name in (OURS, TRITON):
            one = found.get((name, how, sequences, chunk))
            row += [number(one.timesteps_per_s), number(one.p50_ms), number(one.server_us)] if one else ["failed"] * 3
        rows.append(row)
    columns = [f"{name}: {what}" for name in (OURS, TRITON) for what in ("timesteps/s", "p50 ms", "µs a call")]
    return table(["calls", "sequences", "chunk", *columns], rows)
