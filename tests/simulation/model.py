"""A model whose every timestep leaves a trace in all that follows: two whole numbers, one of them the experience."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.model.artifact import Artifact
from dnc_serve.model.rows import Field, RowLayout, TensorSpec

MODULUS = 65_521  # all numbers stay whole in float32
State = tuple[int, int]
ONE, TWO = TensorSpec((1,)), TensorSpec((2,))
LAYOUT = RowLayout([Field((), name="life"), Field((), name="memory")], experience_offset=1)


class Moment(NamedTuple):
    """Where a session stands, and its state."""

    position: int
    experience: int
    state: State


def tick(state: State, value: int) -> State:
    life, memory = state
    return (life * 31 + value + 7) % MODULUS, (memory * 17 + value + life % 5 + 3) % MODULUS


class Runner:
    """`ModelRunner`: steps rows one by one."""

    kind, note, fingerprint = "simulated", "", "simulated"
    device = torch.device("cpu")
    layout, inputs, outputs = LAYOUT, ONE, TWO
    max_rows = 4
    row_counts: tuple[int, ...] = ()

    def __init__(self, lets_others_run: bool) -> None:
        self.lets_others_run = lets_others_run

    def step(
        self, rows: StateRows, sources: Sequence[int], targets: Sequence[int], inputs: Sequence[Array]
    ) -> tuple[list[Array], list[bool]]:
        assert rows.array is not None
        results: list[Array] = []
        for source, target, values in zip(sources, targets, inputs, strict=True):
            life, memory = rows.array[source]
            state = int(life), int(memory)
            outputs = np.empty((len(values), 2), np.float32)
            for place, (value,) in enumerate(values):
                outputs[place] = state = tick(state, int(value))
            rows.array[target] = state
            results.append(outputs)
        return results, [True] * len(results)

    def seconds(self, rows: int) -> float:
        return 0.0008  # so that a chunk of three timesteps is a long one

    def of_fingerprint(self, fingerprint: str) -> "Runner":
        return self

    def debug(self, inputs: Array, state: Float32) -> dict[str, Array]:
        return {}


def artifact() -> Artifact:
    """What the operations want to know of the model."""
    tick: Any = None
    return Artifact(Path(), {"digest": "d" * 64}, torch.device("cpu"), ONE, TWO, LAYOUT, tick)
