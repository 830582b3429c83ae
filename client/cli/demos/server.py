"""A demo's server, a real `dnc serve`, and what is done there: in a process of its own each, so that nothing but the
server can remember it."""

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from dnc_serve.client.arrays import Array
from dnc_serve.client.cli.child_server import ChildServer, child_server
from dnc_serve.client.client import Client, Session

SESSION = "demo"
PATIENCE_S = 5.0

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def _patience() -> Iterator[None]:
    """Says every few seconds that it still goes on."""
    done = threading.Event()

    def tell() -> None:
        waited_s = 0.0
        while not done.wait(PATIENCE_S):
            waited_s += PATIENCE_S
            print(f"still starting, after {waited_s:.0f} s …", file=sys.stderr)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def serving(model: str, runtime: str = "torchserve", state_dir: Path | None = None) -> Iterator[str]:
    """The address of the streaming endpoint of `started`."""
    with started(model, runtime, state_dir) as server:
        yield server.addresses["grpc"]


@contextmanager
def started(model: str, runtime: str = "torchserve", state_dir: Path | None = None) -> Iterator[ChildServer]:
    """A server on free ports, which is stopped afterwards.

    Without a state folder it has one that vanishes with it. Raises ServerFailed.
    """
    with ExitStack() as stack:
        if state_dir is None:
            state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dnc-demo-"))) / "state"
        print("starting dnc serve …", file=sys.stderr)
        with _patience():
            server = stack.enter_context(child_server(model, state_dir, "--runtime", runtime, "--log-level", "warning"))
        print(f"dnc serve is ready at {server.addresses['grpc']}", file=sys.stderr)
        yield server


def kill(server: ChildServer) -> None:
    """SIGKILL to the server and all that it has started, as in a crash of the machine."""
    import psutil

    root = psutil.Process(server.process.pid)
    for process in (root, *root.children(recursive=True)):
        process.kill()


@dataclass(frozen=True)
class Steps:
    """What steps of a session gave, made by one process."""

    pid: int
    outputs: Array  # [T, O]
    written: Array  # [T, N], what each timestep wrote of itself into each slot
    read: Array  # [T, N], how much it read of each slot
    position: int


def step_session(address: str, inputs: Array) -> Steps:
    """Opens the session, steps it one timestep at a time, and leaves."""
    with Client(address) as client, client.session(SESSION) as session:
        return step_each(session, inputs)


def step_each(session: Session, inputs: Array) -> Steps:
    """Steps a session one timestep at a time."""
    outputs, written, read = [], [], []
    for timestep in inputs:
        output, debug = session.step(timestep[None], debug=True)
        slots = debug["usage_vector"].shape[-1]
        outputs.append(output)
        written.append(by_slot(debug["write_weights"], slots))
        read.append(by_slot(debug["read_weights"], slots))
    return Steps(os.getpid(), np.concatenate(outputs), np.stack(written), np.stack(read), session.position)


def by_slot(weights: Array, slots: int) -> Array:
    """One timestep's weightings as one [N]: of several heads or layers, the largest share that a slot got."""
    largest: Array = weights.reshape(-1, slots).max(0)
    return largest


def in_another_process(
    work: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """The result of work that a fresh process does, which ends with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments, **named).result()
