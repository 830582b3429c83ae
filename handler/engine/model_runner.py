"""What steps the model: rows of packed state, each for a number of ticks of its own.

A row's result must not depend on its company: that is what exactly-once, recovery and forks stand on.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.model.export import Artifact
from dnc_serve.model.layout import StateLayout

# Outputs [ticks, O] of each row, and whether its state is finite; that may be False where only a sum overflows.
Stepped = tuple[list[Float32], list[bool]]


class ModelRunner(Protocol):
    """Code of one model that steps rows; it may be called in several threads at once, for rows of their own."""

    kind: str  # kernel or torchscript
    note: str  # why it is not the faster kind; empty if it is
    fingerprint: str  # what the promise of equal bits holds for: model, code and kind of processor
    device: torch.device
    layout: StateLayout
    input_size: int
    output_size: int
    max_rows: int  # of one call: more would cost no less
    row_counts: tuple[int, ...]  # in which rows are stepped together; empty if in any
    lets_others_run: bool  # it holds no lock of the interpreter

    def step(
        self, rows: StateRows, sources: Sequence[int], targets: Sequence[int], inputs: Sequence[Float32]
    ) -> Stepped:
        """Steps states from the rows `sources`, which stay, to the rows `targets`: inputs [ticks, I] of each."""

    def seconds(self, rows: int) -> float:
        """How long one tick of so many rows takes."""

    def of_fingerprint(self, fingerprint: str) -> "ModelRunner":
        """What computed a record with this fingerprint, if it is at hand, else this."""

    def debug(self, inputs: Float32, state: Float32) -> dict[str, Float32]:
        """What each layer's access left in memory under the seed's six names, [T x L, …], for inputs [T, I]."""

    def interface(self, state: Float32) -> dict[str, Float32]:
        """What each layer's controller asked of its memory at the timestep that led to a state [S]."""


def fingerprint_of(kind: str, artifact: Artifact, *code: str) -> str:
    """What the promise of equal bits holds for, as 16 hexadecimal digits: the model, and all that its code's bits hang
    on."""
    described = [kind, artifact.digest, *code]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


class Inspection:
    """Looks into the memory: TorchScript does them, whichever code steps."""

    def __init__(self, artifact: Artifact, device: torch.device, rows: int) -> None:
        self._module = artifact.module
        self._device = device
        self._rows = rows  # a number of rows that may be stepped together

    def debug(self, inputs: Float32, state: Float32) -> dict[str, Float32]:
        """See `ModelRunner.debug`."""
        tile = torch.zeros(len(inputs), self._rows, inputs.shape[1])
        tile[:, 0] = torch.from_numpy(np.array(inputs))
        states = torch.zeros(self._rows, len(state))
        states[0] = torch.from_numpy(state)
        with torch.inference_mode():
            _, _, arrays = self._module.trace_debug(tile.to(self._device), states.to(self._device))
        return {name: _flat(array[:, :, 0]) for name, array in dict(arrays).items()}

    def interface(self, state: Float32) -> dict[str, Float32]:
        """See `ModelRunner.interface`."""
        with torch.inference_mode():
            packed = torch.from_numpy(state)[None].to(self._device)
            return {name: values[:, 0].cpu().numpy() for name, values in self._module.interface(packed).items()}


def _flat(array: Tensor) -> Float32:
    flat: Float32 = array.reshape(array.shape[0] * array.shape[1], -1).cpu().numpy()
    return flat
