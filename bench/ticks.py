"""A tick of the row kernel, of TorchScript and of the `dnc` package, in one process; and how fast links stream.

    python -m bench.ticks [--model copy|readme|1024|4096|FOLDER]… [--package FOLDER] [--turns 60] [--json]

Rows 1, 8 and 64, calls of one and of eight ticks, one thread; `readme` is of the size that the package's README shows,
the numbers are copy models with as many memory slots. Each way takes its turn many times, so that whatever else the
machine does falls on all; the figure is the median turn's time on the processor. The `dnc` package of PyPI runs the
same sizes with its own weights; it is left out if it can't be imported. Bytes a second are those of the states, read
once and written once for each tick, beside what the machine copies.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import script
from dnc_serve.model.kernel import RowKernel, TickCode, compile_code, compiled, request, user_cache
from dnc_serve.model.layout import StateLayout
from dnc_serve.model.pretrained import path
from dnc_serve.model.weights import load_model

# The size that the `dnc` package's README shows: a step is many times the bundled models', and what a server adds
# should vanish beside it.
README_SIZE: dict[str, Any] = {
    "input_size": 64, "hidden_size": 128, "rnn_type": "lstm", "num_layers": 4, "num_hidden_layers": 1, "nr_cells": 100,
    "cell_size": 32, "read_heads": 4,
}  # fmt: skip
ROWS = (1, 8, 64)
TICKS = (1, 8)
KERNEL, TORCHSCRIPT, PACKAGE = "row kernel", "TorchScript", "dnc package"
# Rows whose states take more are left out: they would measure the memory of the machine, and for minutes.
MOST_STATE_BYTES = 512 << 20
TURN_SECONDS = 0.002
# By model and rows, how many times faster the kernel should be, for calls of one tick.
AIMS = {
    ("copy", 1, TORCHSCRIPT): 20, ("copy", 64, TORCHSCRIPT): 4, ("readme", 1, PACKAGE): 5, ("readme", 8, PACKAGE): 5,
    ("readme", 64, PACKAGE): 3, ("1024", 8, TORCHSCRIPT): 5,
}  # fmt: skip

Call = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="may be given several times (copy, readme, 1024)")
    parser.add_argument("--package", help="folder that the dnc package was installed to")
    parser.add_argument("--turns", type=int, default=60, help="of each way (60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if args.package:
        sys.path.append(args.package)
    torch.set_num_threads(1)
    reports = [measure(model, args.turns) for model in args.model or ("copy", "readme", "1024")]
    print(json.dumps(reports, indent=2) if args.json else "\n\n".join(map(table, reports)))


def model_of(name: str) -> DNC:
    """The model of that name, or of so many slots."""
    if name == "readme":
        torch.manual_seed(0)
        return DNC(**README_SIZE).eval()
    if name.isdecimal():
        return load_model(path("copy"), nr_cells=int(name)).eval()
    return load_model(Path(name) if Path(name).is_dir() else path(name)).eval()


def kernel_of(dnc: DNC) -> RowKernel:
    """Its row kernel, compiled if need be."""
    asked = request(dnc.config)
    file = compiled(asked, [user_cache()]) or compile_code([asked], user_cache())[0]
    return RowKernel(dnc.config, dnc.state_dict(), TickCode(file))


def measure(name: str, turns: int) -> dict[str, Any]:
    """Microseconds a tick, for each number of rows and of ticks a call."""
    dnc = model_of(name)
    kernel, module = kernel_of(dnc), script(DNC.from_config(replace(dnc.config)))
    state_bytes = 4 * StateLayout(dnc.config).size
    figures: dict[str, dict[str, float]] = {}
    ratios = {}
    for rows in ROWS:
        for ticks in TICKS:
            if 2 * rows * state_bytes > MOST_STATE_BYTES:
                continue
            calls = {
                KERNEL: stepped_by_kernel(kernel, rows, ticks),
                TORCHSCRIPT: stepped_by_module(module, dnc, rows, ticks),
            }
            package = stepped_by_package(dnc.config, rows, ticks)
            if package is not None:
                calls[PACKAGE] = package
            seconds = in_turns(calls, turns)
            figures[f"{rows} rows, {ticks} ticks"] = {kind: each / ticks * 1e6 for kind, each in seconds.items()}
            for kind in (TORCHSCRIPT, PACKAGE):
                if ticks == 1 and kind in seconds and (name, rows, kind) in AIMS:
                    ratios[f"{rows} rows: {kind} / {KERNEL}"] = (
                        seconds[kind] / seconds[KERNEL],
                        AIMS[name, rows, kind],
                    )
    lone = figures["1 rows, 8 ticks"][KERNEL]
    return {
        "model": name,
        "torch": torch.__version__,
        "sizes": dnc.config.to_dict(),
        "state_bytes": state_bytes,
        "microseconds_a_tick": figures,
        "ratios": ratios,
        "gigabytes_a_second": {"kernel": 2 * state_bytes / lone / 1e3, "copy": copied(state_bytes, turns)},
    }


def stepped_by_kernel(kernel: RowKernel, rows: int, ticks: int) -> Call:
    """A call that steps sessions on, between two rows of a slab each, as a server does."""
    inputs = np.sign(np.random.default_rng(0).standard_normal((ticks, rows, kernel.input_size))).astype(np.float32)
    states = np.zeros((2 * rows, kernel.state_size), np.float32)
    places = [list(range(rows)), list(range(rows, 2 * rows))]

    def call() -> None:
        kernel.step(states, *places, inputs)
        places.reverse()

    return call


def stepped_by_module(module: Any, dnc: DNC, rows: int, ticks: int) -> Call:
    """The same with TorchScript."""
    inputs = torch.randn(ticks, rows, dnc.config.input_size).sign()
    states = torch.zeros(rows, StateLayout(dnc.config).size)

    def call() -> None:
        nonlocal states
        with torch.inference_mode():
            _, states = module(inputs, states)

    return call


def stepped_by_package(config: DNCConfig, rows: int, ticks: int) -> Call | None:
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


def copied(size: int, turns: int) -> float:
    """Gigabytes a second that are read and written while so many bytes are copied to and fro."""
    first, second = np.zeros(size, np.uint8), np.ones(size, np.uint8)

    def copy() -> None:
        np.copyto(first, second)
        np.copyto(second, first)

    return 4 * size / in_turns({"copy": copy}, turns)["copy"] / 1e9


def in_turns(calls: dict[str, Call], turns: int) -> dict[str, float]:
    """Seconds of processor time of each call: the median of many turns."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(4):  # TorchScript's executor may change its code after the first calls
            start = time.thread_time()
            call()
        repeats[name] = max(1, int(TURN_SECONDS / max(time.thread_time() - start, 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(repeats[name]):
                call()
            found[name].append((time.thread_time() - start) / repeats[name])
    return {name: statistics.median(times) for name, times in found.items()}


def table(report: dict[str, Any]) -> str:
    """The figures, and how many times faster the kernel is than each of the others."""
    speed = report["gigabytes_a_second"]
    lines = [
        f"{report['model']}, torch {report['torch']}, one thread, states of {report['state_bytes']:,} bytes; µs a tick",
        f"streams {speed['kernel']:.1f} GB/s; the machine copies {speed['copy']:.1f} GB/s",
    ]
    for name, times in report["microseconds_a_tick"].items():
        cells = [f"{kind} {us:9.1f} ({us / times[KERNEL]:6.2f}x)" for kind, us in times.items()]
        lines.append(f"{name:18} " + "   ".join(cells))
    for name, (ratio, aim) in report["ratios"].items():
        lines.append(f"{name}: {ratio:.1f}, at least {aim}: {'reached' if ratio >= aim else 'missed'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
