"""What compiling ahead of time gains: a tick of TorchScript, of compiled code, of the `dnc` package, in one process.

    python bench/ticks.py [--model copy] [--cache FOLDER] [--package FOLDER] [--json]

Rows 1, 8 and 64 in the tiles that the server would take, calls of one and of eight ticks, one thread. Each way takes
its turn many times, so that whatever else the machine does falls on all; the figure is the median turn's time on the
processor. Compiling, if `--cache` doesn't have the model already, takes minutes. The `dnc` package of PyPI runs the
same sizes with its own weights; it is left out if it can't be imported.
"""

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.model.compiled import CompileBar, compile_artifact
from dnc_serve.model.config import DNCConfig
from dnc_serve.model.export import export, load_artifact
from dnc_serve.model.pretrained import path
from dnc_serve.model.weights import load_model

ROWS = (1, 8, 64)
TICKS = (1, 8)
TURNS = 60
CALLS_A_TURN = 8

Call = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="copy", help="a bundled model, or a run's folder (default: copy)")
    parser.add_argument("--cache", type=Path, help="folder of compiled models (default: a temporary one)")
    parser.add_argument("--package", help="folder that the dnc package was installed to")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if args.package:
        sys.path.append(args.package)
    run = Path(args.model) if Path(args.model).is_dir() else path(args.model)
    with tempfile.TemporaryDirectory() as temporary:
        report = measure(run, Path(temporary), args.cache or Path(temporary) / "compiled")
    print(json.dumps(report, indent=2) if args.json else table(report))


def measure(run: Path, temporary: Path, cache: Path) -> dict[str, Any]:
    """Microseconds a tick, for each number of rows and of ticks a call."""
    export(load_model(run), temporary / "artifact")
    with CompileBar() as bar:
        compile_artifact(temporary / "artifact", cache, progress=bar.show)
    artifact = load_artifact(temporary / "artifact")
    compiled = choose_tiles(artifact, "cpu", cache)
    if compiled.note:
        sys.exit(compiled.note)
    portable = compiled.others[0]
    figures = {}
    for rows in ROWS:
        for ticks in TICKS:
            calls = {"torchscript": tiled(portable, rows, ticks), "compiled": tiled(compiled, rows, ticks)}
            package = packaged(artifact.config, rows, ticks)
            if package is not None:
                calls["dnc package"] = package
            figures[f"{rows} rows, {ticks} ticks"] = {
                name: seconds / ticks * 1e6 for name, seconds in in_turns(calls).items()
            }
    return {
        "torch": torch.__version__,
        "sizes": artifact.config.to_dict(),
        "tiles": {"torchscript": portable.sizes, "compiled": compiled.sizes},
        "difference": compiled.difference(portable),
        "microseconds_a_tick": figures,
    }


def tiled(tiles: TileRunner, rows: int, ticks: int) -> Call:
    """A call that steps a session's state on, in the smallest tile for so many rows."""
    tile = tiles.fit(rows)
    inputs, states = torch.randn(ticks, tile, tiles.input_size).sign(), torch.zeros(tile, tiles.layout.size)

    def call() -> None:
        nonlocal states
        _, states = tiles.run(inputs, states)

    return call


def packaged(config: DNCConfig, rows: int, ticks: int) -> Call | None:
    """The same with the `dnc` package, which takes sequences in one call too."""
    try:
        package = importlib.import_module("dnc")
    except ImportError:
        return None
    names = ("input_size", "hidden_size", "num_layers", "num_hidden_layers", "nr_cells", "read_heads", "cell_size")
    theirs = package.DNC(**{name: getattr(config, name) for name in names})
    inputs = torch.randn(rows, ticks, config.input_size).sign()
    with torch.no_grad():
        hidden = theirs(inputs)[1]

    def call() -> None:
        nonlocal hidden
        with torch.no_grad():
            _, hidden = theirs(inputs, hidden)

    return call


def in_turns(calls: dict[str, Call]) -> dict[str, float]:
    """Seconds of processor time of each call: the median of many turns."""
    for call in calls.values():
        for _ in range(4):
            call()
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(CALLS_A_TURN):
                call()
            turns[name].append((time.thread_time() - start) / CALLS_A_TURN)
    return {name: statistics.median(times) for name, times in turns.items()}


def table(report: dict[str, Any]) -> str:
    """The figures, and how many times faster compiled code is than each of the others."""
    lines = [
        f"torch {report['torch']}, one thread; microseconds a tick; compiled and TorchScript differ by "
        f"{report['difference']:.1e}"
    ]
    for name, times in report["microseconds_a_tick"].items():
        cells = [f"{kind} {time_us:8.1f} ({time_us / times['compiled']:5.2f}x)" for kind, time_us in times.items()]
        lines.append(f"{name:18} " + "   ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
