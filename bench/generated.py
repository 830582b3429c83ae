"""Triton and this project under NVIDIA's perf_analyzer, a load generator that nobody here wrote: one command line for
both, in turns."""

import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
PATIENCE_S = 30.0
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
        measures = _measures(command, servers, points, run.seconds)
        turns = run.turns(measures)
        if not run.quick:
            for turn in turns:
                turn |= {(OURS, *LAST_POINT): _survived(command, *servers[OURS], LAST_POINT, run.seconds)}
            turns[-1][TRITON, *LAST_POINT] = _survived(command, *servers[TRITON], LAST_POINT, run.seconds)
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
    seconds: float,
) -> dict[Any, Callable[[], Figures | None]]:
    return {
        (name, *point): partial(_survived, command, server, model, point, seconds)
        for point in points
        for name, (server, model) in servers.items()
    }


def _survived(
    command: Sequence[str], server: Server, model: str, point: tuple[str, int, int], seconds: float
) -> Figures | None:
    try:
        return generated_load(command, server, model, point, seconds)
    except RuntimeError as exc:
        if model == MODEL:
            raise
        print(f"Triton did not answer {point}: {exc}", file=sys.stderr)
        return None


def generated_load(
    command: Sequence[str], server: Server, model: str, point: tuple[str, int, int], seconds: float
) -> Figures:
    """What perf_analyzer reports of windows of so many seconds. Raises RuntimeError with what it says if it fails."""
    how, sequences, chunk = point
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        asked = ["-m", model, "-i", "grpc", "-u", server.address, "--shape", f"INPUT:{chunk},{server.input_size}"]
        asked += ["--concurrency-range", str(sequences), "--sequence-length", str(SEQUENCE_CHUNKS)]
        # Three windows, however much they differ.
        asked += ["--measurement-interval", str(round(seconds * 1000)), "--max-trials", "3", "-s", "999"]
        asked += [*(["--streaming"] if how == STREAMING else []), "-f", str(report)]
        with (Path(folder) / "said").open("w+") as said:
            process = subprocess.Popen([*command, *asked], stdout=said, stderr=said)
            load = _load_of(process, server.pids, seconds)
            said.seek(0)
            text = said.read().strip()
        if process.returncode != 0 or not report.is_file():
            raise RuntimeError(f"perf_analyzer ended with {process.returncode}: {text[-500:]}")
        (row,) = csv.DictReader(report.read_text().splitlines())
    p50, p99 = (float(row[f"p{part} latency"]) / 1000 for part in (50, 99))
    rate = float(row["Inferences/Second"])
    return Figures(round(3 * seconds * rate), p50, p99, rate * chunk, load / rate * 1e6)


def _load_of(process: "subprocess.Popen[bytes]", pids: Sequence[int], seconds: float) -> float:
    """How many processors the server kept busy while a load generator ran, from its first window on."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    began, before = time.monotonic(), processor_s(pids)
    last, after = began + 1e-9, before
    while process.poll() is None:
        if time.monotonic() - began > 10 * seconds + PATIENCE_S:  # it waits for ever for a server that is stuck
            process.kill()
            process.wait()
        time.sleep(0.05)
        last, after = time.monotonic(), processor_s(pids)
    return (after - before) / (last - began)


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
