"""Copy: remember a sequence of bit vectors, and say it again after the end marker.

As a command, `python -m dnc_serve.model.tasks.copy` takes the flags of the `dnc` package's copy task.
"""

import sys
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dnc_serve.model.recipe import Recipe
from dnc_serve.model.tasks.task import Batch, Task, check_range, option, random_bits, random_int, random_share


@dataclass(frozen=True, kw_only=True)
class Copy(Task):
    """n vectors of fair bits, then an end marker in a channel of its own, then n timesteps to answer in.

    Another channel marks the first vector: after a reset in the midst of a sequence, a controller that was not reset
    has no other way to know that it is being told a new one.
    """

    name = "copy"
    recipe = Recipe(
        model={"hidden_size": 48, "num_hidden_layers": 1, "nr_cells": 64, "cell_size": 16, "read_heads": 1},
        iterations=4000,
        optimizer="rmsprop",
        lr=3e-4,
        final_lr=2e-5,
        carry=0.7,
    )

    bits: int = option(8, "bits of a vector")
    min_length: int = option(1, "vectors in the shortest sequence")
    max_length: int = option(20, "vectors in the longest sequence")
    short_share: float = option(0.25, "share of the batches with 1 to 3 vectors only")
    seed_style: bool = option(False, "bits as 0 and 1 instead of ±1, no start marker, a cost for every output")

    def __post_init__(self) -> None:
        check_range("the sequence's length", self.min_length, self.max_length)

    @property
    def input_size(self) -> int:
        return self.bits + (1 if self.seed_style else 2)

    @property
    def output_size(self) -> int:
        return self.bits + 1 if self.seed_style else self.bits

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        longest = self.max_length
        if random_share(generator) < self.short_share:
            longest = max(self.min_length, min(3, longest))
        length = random_int(self.min_length, longest, generator)
        return self.episode(random_bits((length, batch_size, self.bits), generator))

    def episode(self, vectors: Tensor) -> Batch:
        """The whole episode for given bits [n, B, bits]."""
        length, batch_size, _ = vectors.shape
        inputs = torch.zeros(2 * length + 1, batch_size, self.input_size)
        inputs[:length, :, : self.bits] = vectors if self.seed_style else 2 * vectors - 1
        if not self.seed_style:
            inputs[0, :, -2] = 1
        inputs[length, :, -1] = 1
        targets = torch.zeros(2 * length + 1, batch_size, self.output_size)
        targets[length + 1 :, :, : self.bits] = vectors
        due = torch.zeros(2 * length + 1, batch_size)
        due[length + 1 :] = 1
        return Batch(inputs, targets, due)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        if self.seed_style:
            return binary_cross_entropy_with_logits(outputs, batch.targets)
        return super().loss(outputs, batch)

    def lengthened(self, by: int) -> Self:
        return replace(self, max_length=self.max_length + by)

    def exams(self) -> dict[str, Task]:
        lengths = [length for length in (1, 5, 10, 20, 30) if length <= 1.5 * self.max_length]
        return {
            f"{length} vectors": replace(self, min_length=length, max_length=length, short_share=0.0)
            for length in lengths
        }


BUNDLED = Copy()
"""The task of the bundled model."""


def encode(bits: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """What tells the bundled model a sequence [n, 8] of bits: inputs [n + 1, 10], the end marker last."""
    vectors = np.asarray(bits)
    if vectors.ndim != 2 or vectors.shape[1] != BUNDLED.bits or not np.isin(vectors, (0, 1)).all():
        raise ValueError(f"bits has shape {list(vectors.shape)}; expected [n, {BUNDLED.bits}] of zeros and ones")
    episode = BUNDLED.episode(torch.as_tensor(vectors, dtype=torch.float32).unsqueeze(1))
    inputs: npt.NDArray[np.float32] = episode.inputs[: len(vectors) + 1, 0].numpy()
    return inputs


def recall_inputs(length: int) -> npt.NDArray[np.float32]:
    """What lets the bundled model say `length` vectors: inputs [n, 10], all zero."""
    return np.zeros((length, BUNDLED.input_size), np.float32)


def decode(outputs: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The bits [n, 8] in the bundled model's outputs for `recall_inputs(n)`."""
    return (np.asarray(outputs) > 0).astype(np.uint8)


if __name__ == "__main__":
    from dnc_serve.model.tasks.seed_command import main

    sys.exit(main("copy"))
