"""`dnc demo`: a random sequence goes into a session; another process reads it back from the session's memory."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from dnc_serve.client.arrays import Float32
from dnc_serve.client.client import Client
from dnc_serve.client.plotting import side_by_side, terminal_picture, used_slots

HELP = "start a server, let a session remember a sequence, and read it back from another process"

SESSION = "demo"
TIMED_CALLS = 500
STOP_TIMEOUT_S = 30.0
PORT_FLAGS = (
    "--port", "--metrics-port", "--torchserve-http-port", "--torchserve-management-port", "--torchserve-metrics-port",
    "--torchserve-grpc-port", "--torchserve-grpc-management-port",
)  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """What one process did with the session."""

    pid: int
    outputs: Float32  # [T, O]
    weightings: Float32  # [T, N]
    position: int


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--length", type=int, default=10, metavar="N", help="vectors of 8 bits to remember, 1 to 20")
    parser.add_argument("--seed", type=int, default=None, help="for the same sequence again")
    parser.add_argument("--model", default="copy", help="a model of the copy task (copy)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 if every bit came back."""
    if not 1 <= args.length <= 20:
        print(f"dnc demo: --length is {args.length}; expected 1 to 20", file=sys.stderr)
        return 2
    try:
        from dnc_serve.model.tasks.copy import decode, encode, recall_inputs
    except ImportError as exc:
        print(f"dnc demo: {exc}; it needs more: pip install 'dnc-serve[serve]'", file=sys.stderr)
        return 1
    bits = np.random.default_rng(args.seed).integers(0, 2, (args.length, 8), dtype=np.uint8)
    try:
        with _server(args.model) as address:
            written = _in_another_process(visit, address, encode(bits), "write_weights")
            print(f"process {written.pid} streamed {written.position} timesteps into session {SESSION!r} and left")
            read = _in_another_process(visit, address, recall_inputs(args.length), "read_weights")
            print(f"process {read.pid} came back and read the sequence from the session's memory\n")
            calls_ms = _in_another_process(time_calls, address) * 1000
    except ServerFailed as exc:
        print(f"dnc demo: {exc}", file=sys.stderr)
        return 1
    recalled = decode(read.outputs)
    wrong = int((recalled != bits).sum())
    print(_beside(bits, recalled))
    print(f"\nwrong bits: {wrong} of {bits.size}\n")
    slots = used_slots(written.weightings, read.weightings)
    print(
        side_by_side(
            terminal_picture("slot  written, over time", written.weightings, slots),
            terminal_picture("slot  read, over time", read.weightings, slots),
        )
    )
    p50, p99 = np.percentile(calls_ms, (50, 99))
    print(f"\n{len(calls_ms)} calls of one timestep each: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    return 0 if wrong == 0 else 1


def visit(address: str, inputs: Float32, weighting: str) -> Visit:
    """Opens the session, steps it one timestep at a time, and leaves."""
    outputs, weightings = [], []
    with Client(address) as client, client.session(SESSION) as session:
        for timestep in inputs:
            output, debug = session.step(timestep[None], debug=True)
            outputs.append(output)
            weightings.append(debug[weighting])
        return Visit(os.getpid(), np.concatenate(outputs), np.concatenate(weightings), session.position)


def time_calls(address: str) -> Float32:
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


class ServerFailed(Exception):
    """`dnc serve` ended before it served; what it said is on standard error."""


@contextmanager
def _server(model: str) -> Iterator[str]:
    """A real server on free ports, with a state folder that vanishes with it; the address of its streaming door."""
    with tempfile.TemporaryDirectory(prefix="dnc-demo-") as folder:
        command = [sys.executable, "-m", "dnc_serve.client.cli", "serve", "--model", model]
        command += ["--state-dir", str(Path(folder) / "state"), "--log-level", "warning"]
        for flag in PORT_FLAGS:
            command += [flag, "0"]
        print("starting dnc serve …", file=sys.stderr)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                yield _address(server)
            finally:
                server.terminate()
                try:
                    server.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    server.kill()


def _address(server: "subprocess.Popen[str]") -> str:
    """Waits for the line that begins with `ready`."""
    assert server.stdout is not None
    for line in server.stdout:
        words = line.split()
        if words and words[0] == "ready":
            print(line.strip(), file=sys.stderr)
            return next(word.removeprefix("grpc=") for word in words if word.startswith("grpc="))
    raise ServerFailed(f"dnc serve ended with exit code {server.wait()}")


def _in_another_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of work that a fresh process does, which ends with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def _beside(bits: "np.ndarray[Any, Any]", recalled: "np.ndarray[Any, Any]") -> str:
    """Original and recalled vectors, one pair a line."""
    lines = [f"{'written':<10} read back"]
    for original, answer in zip(bits, recalled, strict=True):
        shown, back = ("".join("█" if bit else "·" for bit in vector) for vector in (original, answer))
        lines.append(f"{shown:<10} {back}")
    return "\n".join(lines)
