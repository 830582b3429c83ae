"""Priority sort, after Graves et al. 2014: told vectors with a priority each, asked for the most urgent in order."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from dnc_serve.model.recipe import Recipe
from dnc_serve.model.tasks.task import Batch, Task, check_range, option, random_bits, random_int


@dataclass(frozen=True, kw_only=True)
class PrioritySort(Task):
    """Vectors of fair bits, each with a priority uniform in [-1, 1); then those of the highest, highest first.

    An input holds the vector's bits as ±1, its priority, and two flags: told, asked. Of n vectors the `answered`
    share, rounded up, is due, one in each timestep that asks: 16 of 20, as in the paper.
    """

    name = "priority_sort"
    recipe = Recipe(
        model={"hidden_size": 100, "num_hidden_layers": 1, "nr_cells": 32, "cell_size": 24, "read_heads": 2},
        iterations=12_000,
        batch_size=32,
        lr=2e-3,
        final_lr=1e-4,
        carry=0.3,
    )

    bits: int = option(8, "bits of a vector")
    min_vectors: int = option(1, "fewest vectors told")
    max_vectors: int = option(8, "most vectors told; 20 in the paper")
    answered: float = option(0.8, "share of the vectors that is asked for")

    def __post_init__(self) -> None:
        check_range("the number of vectors", self.min_vectors, self.max_vectors)
        if not 0 < self.answered <= 1:
            raise ValueError(f"answered is {self.answered!r}; expected a share in (0, 1]")

    @property
    def input_size(self) -> int:
        return self.bits + 3

    @property
    def output_size(self) -> int:
        return self.bits

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        told = random_int(self.min_vectors, self.max_vectors, generator)
        vectors = random_bits((told, batch_size, self.bits), generator)
        return self.episode(vectors, 2 * torch.rand(told, batch_size, generator=generator) - 1)

    def episode(self, vectors: Tensor, priorities: Tensor) -> Batch:
        """The whole episode for bits [n, B, bits] and priorities [n, B]."""
        told, batch_size, _ = vectors.shape
        asked = math.ceil(self.answered * told - 1e-9)  # 0.8 of 20 is 16, whatever a float makes of it
        inputs = torch.zeros(told + asked, batch_size, self.input_size)
        inputs[:told, :, : self.bits] = 2 * vectors - 1
        inputs[:told, :, -3] = priorities
        inputs[:told, :, -2] = 1
        inputs[told:, :, -1] = 1
        order = torch.argsort(priorities, dim=0, descending=True, stable=True)[:asked]
        targets = torch.zeros(told + asked, batch_size, self.bits)
        targets[told:] = vectors.gather(0, order.unsqueeze(2).expand(-1, -1, self.bits))
        return Batch(inputs, targets, inputs[:, :, -1].clone())

    def lengthened(self, by: int) -> Self:
        return replace(self, max_vectors=self.max_vectors + by)

    def exams(self) -> dict[str, Task]:
        counts = [count for count in (1, 4, 8, 12, 20) if count <= 1.5 * self.max_vectors]
        return {
            f"{count} vector{'s' if count > 1 else ''}": replace(self, min_vectors=count, max_vectors=count)
            for count in counts
        }
