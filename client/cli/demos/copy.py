"""The copy demo: a random sequence goes into a session; another process reads it back from the session's memory."""

import argparse
import time
from dataclasses import dataclass

import numpy as np

from dnc_serve.client.arrays import Array
from dnc_serve.client.cli.demos.layout import bits, table, weightings
from dnc_serve.client.cli.demos.server import SESSION, in_another_process, serving, step_session
from dnc_serve.client.client import Client

HELP = "a random sequence, read back by another process"
LONGEST = 20
TIMED_CALLS = 500


@dataclass(frozen=True)
class Options:
    """What can be asked for."""

    length: int = 10
    seed: int | None = None
    model: str = "copy"
    runtime: str = "torchserve"

    def __post_init__(self) -> None:
        if not 1 <= self.length <= LONGEST:
            raise ValueError(f"--length is {self.length}; expected 1 to {LONGEST}")


def configure(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--length", type=int, metavar="N", help=f"vectors of 8 bits to remember, 1 to {LONGEST} (10)")


def run(options: Options) -> int:
    """Exit code 0 if every bit came back."""
    from dnc_serve.model.tasks.copy import decode, encode, recall_inputs

    vectors = np.random.default_rng(options.seed).integers(0, 2, (options.length, 8), dtype=np.uint8)
    with serving(options.model, options.runtime) as address:
        told = in_another_process(step_session, address, encode(vectors))
        print(f"process {told.pid} streamed {told.position} timesteps into session {SESSION!r} and left")
        asked = in_another_process(step_session, address, recall_inputs(options.length))
        print(f"process {asked.pid} came back and read the sequence from the session's memory\n")
        calls_ms = in_another_process(time_calls, address) * 1000
        stepped_by = in_another_process(code_of, address)
    recalled = decode(asked.outputs)
    wrong = int((recalled != vectors).sum())
    rows = [(bits(vector), bits(answer)) for vector, answer in zip(vectors, recalled, strict=True)]
    print(table(("written", "read back"), rows))
    print(f"\nwrong bits: {wrong} of {vectors.size}\n")
    print(weightings(told.written, asked.read))
    p50, p99 = np.percentile(calls_ms, (50, 99))
    print(f"\n{len(calls_ms)} calls of one timestep each: p50 {p50:.2f} ms, p99 {p99:.2f} ms, stepped by {stepped_by}")
    return 0 if wrong == 0 else 1


def code_of(address: str) -> str:
    """What steps the server's sessions, and why, if it is not the row kernel."""
    with Client(address) as client:
        model = client.model()
        names = {"row-kernel": "the row kernel", "torchscript": "TorchScript", "program": "its program"}
        reason = f" ({model.artifact_note})" if model.artifact_note else ""
        return names.get(model.artifact, model.artifact) + reason


def time_calls(address: str) -> Array:
    """Seconds of single calls of one timestep, on a session of their own that is deleted afterwards."""
    with Client(address) as client, client.session() as session:
        inputs = np.zeros((1, client.model().input_size), np.float32)
        seconds = np.empty(TIMED_CALLS, np.float32)
        for call in range(TIMED_CALLS):
            started = time.perf_counter()
            session.step(inputs)
            seconds[call] = time.perf_counter() - started
        session.delete()
    return seconds
