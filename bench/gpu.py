"""A device's table: ticks by rows in three kinds of code, and what a server there gives to many sessions.

    python -m bench.gpu [--device cuda] [--model copy|1024|FOLDER] [--docs docs] [--quick]

Ticks are the median of many calls of one timestep, each awaited: TorchScript as the server's tiles run it, the same
replayed as a CUDA graph, and the exported program compiled by AOTInductor. Served are 1, 64 and 1,024 sessions of one
timestep a chunk by `--runtime plain`, with 1 and 4 workers. Without a GPU, `--device cpu` tries the program itself.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from bench.run import Run, number, table
from dnc_serve.client.cli.load import Figures, Load, median_figures
from dnc_serve.handler.runtime.artifact import resolve_artifact
from dnc_serve.model.artifact import Artifact, load_artifact
from dnc_serve.model.program import PROGRAM_FILE, load_program

ROWS = (1, 8, 64, 256, 1024)
WORKERS = (1, 4)
# A thousand streams would measure the client: 64 streams of 16 sessions are as many for the server.
LOADS = {1: Load(), 64: Load(64, 64), 1024: Load(1024, 64, 1, "batch")}
SECONDS, FEWEST_CALLS = 0.5, 5
TORCHSCRIPT, GRAPH, COMPILED = "TorchScript", "CUDA graph", "AOTInductor"

Call = Callable[[], Any]


def main() -> None:
    torch.set_num_threads(1)  # as a server
    device, model = {"default": "cuda", "help": "cuda"}, {"default": "copy", "help": "copy"}
    with Run("gpu", __doc__, rounds=3, device=device, model=model) as run:
        ticks = measure_ticks(run.asked.model, run.asked.device, 0.1 * SECONDS if run.quick else SECONDS)
        kinds = list(dict.fromkeys(kind for by_kind in ticks.values() for kind in by_kind))
        rows = [
            [str(size), *(number(by_kind[kind]) if kind in by_kind else "" for kind in kinds)]
            for size, by_kind in ticks.items()
        ]
        served = {workers: measure_served(run, workers) for workers in WORKERS}
        sessions = [
            [f"{count} sessions, {workers} workers", number(each.p50_ms), number(each.p99_ms),
             number(each.timesteps_per_s), number(each.server_us)]
            for workers, by_count in served.items() for count, each in by_count.items()
        ]  # fmt: skip
        text = (
            f"On {name_of(run.asked.device)}, model {run.asked.model}.\n\n"
            f"{table(['rows', *(f'{kind}, µs a tick' for kind in kinds)], rows)}\n\n"
            f"{table(['', 'p50 ms', 'p99 ms', 'timesteps/s', 'µs of processor a chunk'], sessions)}"
        )
        run.finish(text, {"device": name_of(run.asked.device), "ticks": ticks, "served": served})


def name_of(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def measure_served(run: Run, workers: int) -> dict[int, Figures]:
    """What clients of so many sessions see."""
    flags = ("--runtime", "plain", "--code", "torchscript", "--device", run.asked.device, "--workers", str(workers))
    with run.served(*flags, model=run.asked.model) as server:
        turns = run.turns({count: run.stream(server.endpoint, load, f"s{count}-") for count, load in LOADS.items()})
    return {count: median_figures([turn[count] for turn in turns]) for count in LOADS}


def measure_ticks(model: str, device: str, seconds: float) -> dict[int, dict[str, float]]:
    """Microseconds a tick, by rows and kind of code."""
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as temporary:
        folder = resolve_artifact(model, None, Path(temporary), Path(temporary))
        artifact = load_artifact(folder, device)
        program = compiled(artifact, Path(temporary) / "program.pt2")
        with torch.inference_mode():
            return {
                rows: {kind: 1e6 * awaited(call, device, seconds) for kind, call in calls(artifact, program, rows)}
                for rows in ROWS
            }


def calls(artifact: Artifact, program: Callable[..., Any], rows: int) -> Iterator[tuple[str, Call]]:
    """A timestep of so many sessions in each kind of code."""
    inputs = torch.randn(1, rows, *artifact.inputs.shape, device=artifact.device).sign()
    states = torch.from_numpy(np.tile(artifact.layout.initial, (rows, 1))).to(artifact.device)
    yield TORCHSCRIPT, lambda: artifact.tick(inputs, states)
    if artifact.device.type == "cuda":
        yield GRAPH, captured(artifact, inputs, states).replay
    fields = [field.contiguous() for field in artifact.layout.unpack_fields(states)]
    yield COMPILED, lambda: program(inputs[0], *fields)


def captured(artifact: Artifact, inputs: Tensor, states: Tensor) -> torch.cuda.CUDAGraph:
    """The tile's tick as a graph, which steps the states where they are."""
    aside = torch.cuda.Stream()  # what is captured must have run before, on another stream than the default one
    with torch.cuda.stream(aside):
        for _ in range(4):
            artifact.tick(inputs, states)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, after = artifact.tick(inputs, states)
        states.copy_(after)
    return graph


def compiled(artifact: Artifact, path: Path) -> Callable[..., Any]:
    """The exported program as AOTInductor compiles it, for any number of rows."""
    program = move_to_device_pass(load_program(artifact.folder / PROGRAM_FILE), artifact.device)
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return torch._inductor.aoti_load_package(str(path))  # type: ignore[no-any-return]


def awaited(call: Call, device: str, seconds: float) -> float:
    """Seconds of a call whose result is awaited: the median."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    for _ in range(FEWEST_CALLS):
        call()
    times: list[float] = []
    while len(times) < FEWEST_CALLS or sum(times) < seconds:
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
