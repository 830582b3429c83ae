"""A training step's time and memory beside those of the `dnc` package of PyPI, on one thread.

    python -m bench.training [--cases readme small large] [--compiled] [--keep-memory] [--json] [--turns 7]

Forward and backward, at the sizes of that package's README, at small ones and with a large memory, each way in turns
within one process, so that whatever else the machine does falls on all; the figure is the processor's time in the
median turn. `autograd` is ours without the links' own backward, and `compiled` (with `--compiled`, minutes) trains by
`torch.compile`, as `dnc train --compile` does. `--keep-memory` has the process keep what it frees, as `dnc train` does.
Peak memory is what a training step adds in a process of its own (Linux only). `bench.ticks` is about stepping.
"""

import argparse
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.setup import cache_folder, dnc_package
from bench.ticks import README_SIZE, Call, in_turns
from dnc_serve.model import DNC, links
from dnc_serve.model.device import keep_freed_memory

SMALL = {"input_size": 8, "hidden_size": 64, "num_hidden_layers": 1, "cell_size": 16}
CASES: dict[str, dict[str, Any]] = {
    "readme": README_SIZE, "small": {**SMALL, "nr_cells": 16, "read_heads": 2},
    "large": {**SMALL, "nr_cells": 1024, "read_heads": 1},
}  # fmt: skip
SHAPES = {"readme": (20, 32), "small": (20, 32), "large": (5, 8)}  # timesteps and batch
PACKAGE, EAGER, AUTOGRAD, COMPILED = "package", "eager", "autograd", "compiled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=["readme", "small"], help="which sizes")
    parser.add_argument("--compiled", action="store_true", help="also compile the step, which takes minutes")
    parser.add_argument("--keep-memory", action="store_true", help="keep what is freed, for the next tensor")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--turns", type=int, default=7, help="of each way (7)")
    parser.add_argument("--memory-of", nargs=2, metavar=("WHOSE", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    sys.path.append(str(dnc_package(cache_folder())))
    if args.memory_of:
        print(peak_of_training(*args.memory_of))
        return
    if args.keep_memory:
        keep_freed_memory()
    report = {case: measure(case, args.compiled, args.turns) for case in args.cases}
    print(json.dumps({"torch": torch.__version__, "cases": report}, indent=2) if args.json else table(report))


def model_of(whose: str, case: str) -> nn.Module:
    """The package's model of that size, or ours."""
    maker = importlib.import_module("dnc").DNC if whose == PACKAGE else DNC
    model: nn.Module = maker(**CASES[case])
    return model


def measure(case: str, compiled: bool, turns: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a training step by each way, and MiB that it takes at most."""
    timesteps, batch = SHAPES[case]
    inputs = torch.randn(batch, timesteps, CASES[case]["input_size"])
    ours = DNC(**CASES[case])
    calls = {
        PACKAGE: training(model_of(PACKAGE, case), inputs),
        EAGER: training(ours, inputs),
        AUTOGRAD: autograd(ours, inputs),
    }
    if compiled:
        calls[COMPILED] = training_compiled(ours, inputs)
    times = {way: seconds * 1e3 for way, seconds in in_turns(calls, turns).items()}
    return {"ms": times, "peak MiB": {whose: peak_in_a_process(whose, case) for whose in (PACKAGE, EAGER)}}


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


def peak_of_training(whose: str, case: str) -> float:
    """MiB that a training step adds to this process at most."""
    timesteps, batch = SHAPES[case]
    call = training(model_of(whose, case), torch.randn(batch, timesteps, CASES[case]["input_size"]))
    before = peak_memory()
    call()
    return peak_memory() - before


def peak_memory() -> float:
    """MiB that this process has had at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def peak_in_a_process(whose: str, case: str) -> float:
    command = [sys.executable, "-m", "bench.training", "--memory-of", whose, case]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


def table(report: dict[str, dict[str, dict[str, float]]]) -> str:
    """Each figure, and how many times better it is than the package's."""
    lines = [f"torch {torch.__version__}, one thread; a training step, and times better than the dnc package"]
    for case, figures in report.items():
        for unit, by_way in figures.items():
            cells = "  ".join(f"{way} {value:8.2f} ({by_way[PACKAGE] / value:5.2f}x)" for way, value in by_way.items())
            lines.append(f"{case:7} {unit:8} {cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
