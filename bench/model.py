"""The model's speed beside that of the `dnc` package of PyPI, in one process, one run, on one thread.

    python bench/model.py [--cases readme small large] [--compiled] [--keep-memory] [--json] [--seconds 1.0]

Forward stepping (one timestep a call, no gradients) and a training step (forward, backward), at the sizes of that
package's README, at small ones and with a large memory. The two are measured in turns, so that whatever else the
machine does falls on both; the figure is the processor's time in the median turn. `autograd` is ours without the links'
own backward, and `compiled` (with `--compiled`, minutes) trains by `torch.compile`, as `dnc train --compile` does.
`--keep-memory` has the process keep what it frees, as `dnc train` does. Peak memory is that of a training step in a
process of its own, above what the process had before it (Linux only).
"""

import argparse
import importlib
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnc_serve.model import DNC, links
from dnc_serve.model.device import keep_freed_memory

CASES: dict[str, dict[str, Any]] = {
    "readme": {
        "input_size": 64,
        "hidden_size": 128,
        "num_layers": 4,
        "num_hidden_layers": 1,
        "nr_cells": 100,
        "cell_size": 32,
        "read_heads": 4,
    },
    "small": {
        "input_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "nr_cells": 16,
        "cell_size": 16,
        "read_heads": 2,
    },
    "large": {
        "input_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "nr_cells": 1024,
        "cell_size": 16,
        "read_heads": 1,
    },
}
STEP_BATCHES = {"readme": (1, 32, 64), "small": (1, 32, 64), "large": (1, 8)}
TRAIN = {"readme": (20, 32), "small": (20, 32), "large": (5, 8)}  # timesteps and batch
TURNS = 7

Call = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=["readme", "small"], help="which sizes")
    parser.add_argument("--compiled", action="store_true", help="also compile the step, which takes minutes")
    parser.add_argument("--keep-memory", action="store_true", help="keep what is freed, for the next tensor")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--seconds", type=float, default=1.0, help="to spend on each figure (default 1.0)")
    parser.add_argument("--package", metavar="FOLDER", help="where the dnc package is; without it, pip fetches it")
    parser.add_argument("--memory-of", choices=("package", "eager"), help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=tuple(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.package or install_package(temporary)
        sys.path.insert(0, folder)
        package = importlib.import_module("dnc")
        if arguments.memory_of:
            maker = package.DNC if arguments.memory_of == "package" else DNC
            print(peak_of_training(maker(**CASES[arguments.case]), arguments.case))
            return
        figures = {}
        if arguments.keep_memory:
            keep_freed_memory()
        for name in arguments.cases:
            figures[name] = measure(name, package, arguments.compiled, arguments.seconds)
            for maker_name in ("package", "eager"):
                figures[name][f"peak MiB, {maker_name}"] = peak_in_a_process(maker_name, name, folder)

    report = {"torch": torch.__version__, "threads": 1, "figures": figures, "geometric_means": means(figures)}
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print_table(report)


def install_package(temporary: str) -> str:
    """The `dnc` package in a folder of its own: it declares a flann that it doesn't need here."""
    folder = str(Path(temporary) / "package")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "dnc==1.1.0"]
    subprocess.run(command, check=True, timeout=120)
    return folder


def measure(name: str, package: Any, compiled: bool, seconds: float) -> dict[str, Any]:
    """Milliseconds of each kind of call, for the package and for ours."""
    sizes = CASES[name]
    ours, theirs = DNC(**sizes), package.DNC(**sizes)
    figures: dict[str, Any] = {}
    for batch in STEP_BATCHES[name]:
        x = torch.randn(batch, 1, sizes["input_size"])
        calls = {"package": stepping(theirs, x), "eager": stepping(ours, x)}
        figures[f"step B={batch}"] = in_turns(calls, seconds)
    timesteps, batch = TRAIN[name]
    inputs = torch.randn(batch, timesteps, sizes["input_size"])
    calls = {"package": training(theirs, inputs), "eager": training(ours, inputs), "autograd": autograd(ours, inputs)}
    if compiled:
        calls["compiled"] = training_compiled(ours, inputs)
    figures[f"train T={timesteps} B={batch}"] = in_turns(calls, seconds * 3)
    return figures


def stepping(dnc: nn.Module, x: Tensor) -> Call:
    with torch.no_grad():
        hidden = dnc(x)[1]

    def call() -> None:
        nonlocal hidden
        with torch.no_grad():
            _, hidden = dnc(x, hidden)

    return call


def training(dnc: nn.Module, inputs: Tensor) -> Call:
    def call() -> None:
        dnc.zero_grad()
        dnc(inputs)[0].square().mean().backward()

    return call


def autograd(dnc: nn.Module, inputs: Tensor) -> Call:
    train = training(dnc, inputs)

    def call() -> None:
        least, links.LEAST_ENTRIES = links.LEAST_ENTRIES, sys.maxsize
        train()
        links.LEAST_ENTRIES = least

    return call


def training_compiled(dnc: DNC, inputs: Tensor) -> Call:
    step = torch.compile(dnc.step, fullgraph=True, dynamic=False)

    def call() -> None:
        dnc.zero_grad()
        state, outputs = dnc.initial_state(inputs.size(0)), []
        for x in inputs.unbind(1):
            output, state = step(x, state)
            outputs.append(output)
        torch.stack(outputs, 1).square().mean().backward()

    return call


def in_turns(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """Milliseconds of each call: the median of several turns, in which each is repeated for its share of the time."""
    share = seconds / TURNS / len(calls)
    repeats = {}
    for name, call in calls.items():
        call()
        call()
        repeats[name] = max(1, round(share / duration(call, 1)))
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            turns[name].append(duration(call, repeats[name]) * 1e3)
    return {name: statistics.median(times) for name, times in turns.items()}


def duration(call: Call, repeats: int) -> float:
    """Seconds of the processor a call: what other processes take of it meanwhile doesn't count."""
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def peak_of_training(dnc: nn.Module, case: str) -> float:
    """MiB that a training step adds to the process at most."""
    timesteps, batch = TRAIN[case]
    call = training(dnc, torch.randn(batch, timesteps, CASES[case]["input_size"]))
    before = peak_memory()
    call()
    return peak_memory() - before


def peak_memory() -> float:
    """MiB that this process has had at most."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024


def peak_in_a_process(maker: str, case: str, folder: str) -> float:
    command = [sys.executable, __file__, "--memory-of", maker, "--case", case, "--package", folder]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


def means(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times faster than the package, as geometric means over the cases."""
    result = {}
    for kind in ("step", "train"):
        times = [row for case in figures.values() for name, row in case.items() if name.startswith(kind)]
        for ours in [name for name in times[0] if name != "package"]:
            result[f"{kind}, {ours}"] = math.exp(statistics.fmean(math.log(r["package"] / r[ours]) for r in times))
    return result


def print_table(report: dict[str, Any]) -> None:
    print(f"torch {report['torch']}, one thread; milliseconds, and times faster than the dnc package 1.1.0")
    for name, case in report["figures"].items():
        for row, times in case.items():
            if isinstance(times, float):
                print(f"{name:7} {row:16} {times:9.1f}")
                continue
            cells = "  ".join(f"{kind} {ms:8.3f} ({times['package'] / ms:5.2f}x)" for kind, ms in times.items())
            print(f"{name:7} {row:16} {cells}")
    for name, ratio in report["geometric_means"].items():
        print(f"geometric mean, {name}: {ratio:.2f}x")


if __name__ == "__main__":
    main()
