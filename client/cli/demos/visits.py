"""What a demo does with a session, in a process of its own, so that nothing but the server can remember it."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

import numpy as np

from dnc_serve.client.arrays import Float32
from dnc_serve.client.client import Client, Session

SESSION = "demo"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Visit:
    """What one process did with the session."""

    pid: int
    outputs: Float32  # [T, O]
    written: Float32  # [T, N], what each timestep wrote of itself into each slot
    read: Float32  # [T, N], how much it read of each slot
    position: int


def visit(address: str, inputs: Float32) -> Visit:
    """Opens the session, steps it one timestep at a time, and leaves."""
    with Client(address) as client, client.session(SESSION) as session:
        return steps(session, inputs)


def steps(session: Session, inputs: Float32) -> Visit:
    """Steps a session one timestep at a time."""
    outputs, written, read = [], [], []
    for timestep in inputs:
        output, debug = session.step(timestep[None], debug=True)
        slots = debug["usage_vector"].shape[-1]
        outputs.append(output)
        written.append(by_slot(debug["write_weights"], slots))
        read.append(by_slot(debug["read_weights"], slots))
    return Visit(os.getpid(), np.concatenate(outputs), np.stack(written), np.stack(read), session.position)


def by_slot(weights: Float32, slots: int) -> Float32:
    """One timestep's weightings as one [N]: of several heads or layers, the largest share that a slot got."""
    largest: Float32 = weights.reshape(-1, slots).max(0)
    return largest


def in_another_process(
    work: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """The result of work that a fresh process does, which ends with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments, **named).result()
