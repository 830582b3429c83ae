"""What steps the model: rows of packed state, each for a number of ticks of its own.

A row's result must not depend on its company: that is what exactly-once, recovery and forks stand on.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import torch

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.model.artifact import Artifact
from dnc_serve.model.rows import RowLayout, TensorSpec

# Outputs [ticks, *shape] of each row, and whether its state is finite; that may be False where only a sum overflows.
Stepped = tuple[list[Array], list[bool]]


class ModelRunner(Protocol):
    """Code of one model that steps rows; it may be called in several threads at once, for rows of their own."""

    kind: str  # row-kernel, torchscript or program
    note: str  # why it is not the faster kind; empty if it is
    fingerprint: str  # what the promise of equal bits holds for: model, code and kind of processor
    device: torch.device
    layout: RowLayout
    inputs: TensorSpec
    outputs: TensorSpec
    max_rows: int  # of one call: more would cost no less
    row_counts: tuple[int, ...]  # in which rows are stepped together; empty if in any
    lets_others_run: bool  # it holds no lock of the interpreter

    def step(self, rows: StateRows, sources: Sequence[int], targets: Sequence[int], inputs: Sequence[Array]) -> Stepped:
        """Steps states from the rows `sources`, which stay, to the rows `targets`: inputs [ticks, *shape] of each."""

    def seconds(self, rows: int) -> float:
        """How long one tick of so many rows takes."""

    def of_fingerprint(self, fingerprint: str) -> "ModelRunner":
        """What computed a record with this fingerprint, if it is at hand, else this."""

    def debug(self, inputs: Array, state: Float32) -> dict[str, Array]:
        """What each timestep of inputs [T, *shape] leaves in a state [S], by name."""


def fingerprint_of(kind: str, artifact: Artifact, *code: str) -> str:
    """What the promise of equal bits holds for, as 16 hexadecimal digits: the model, and all that its code's bits hang
    on."""
    described = [kind, artifact.digest, *code]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
