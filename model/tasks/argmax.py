"""Argmax: the place of the largest in a sequence of one-hot numbers.

As a command, `python -m dnc_serve.model.tasks.argmax` takes the flags of the `dnc` package's argmax task.
"""

import sys
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from dnc_serve.model.recipe import PLAIN_START, Recipe
from dnc_serve.model.tasks.adding import marked_one_hot
from dnc_serve.model.tasks.task import Batch, Task, check_range, option, random_int


@dataclass(frozen=True, kw_only=True)
class Argmax(Task):
    """One-hot numbers from 0 to size - 2, then an end marker, at which the outputs should sum up to the place.

    Places count from 0; of equal numbers the last one's is asked for.
    """

    name = "argmax"
    unit = "answers"
    recipe = Recipe(
        model={"hidden_size": 100, "num_hidden_layers": 1, "nr_cells": 16, "cell_size": 20, "read_heads": 4},
        start=PLAIN_START,
        iterations=2500,
        batch_size=32,
        lr=3e-3,
        final_lr=1e-4,
    )

    size: int = option(6, "channels of an input; numbers are below size - 1")
    min_length: int = option(2, "numbers in the shortest sequence")
    max_length: int = option(4, "numbers in the longest sequence")

    def __post_init__(self) -> None:
        check_range("the sequence's length", self.min_length, self.max_length)
        check_range("size", self.size, self.size, at_least=2)

    @property
    def input_size(self) -> int:
        return self.size

    @property
    def output_size(self) -> int:
        return self.size

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        length = random_int(self.min_length, self.max_length, generator)
        return self.episode(torch.randint(0, self.size - 1, (length, batch_size), generator=generator))

    def episode(self, numbers: Tensor) -> Batch:
        """The whole episode for numbers [n, B]; the target is at the end marker's timestep, in channel 0."""
        places = len(numbers) - 1 - numbers.flip(0).argmax(0)  # the last of equal ones
        return marked_one_hot(numbers, self.size, places)

    def answer(self, outputs: Tensor) -> Tensor:
        """The answer [B] that outputs [T, B, O] hold."""
        return outputs[-1].sum(1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of the answer."""
        return (self.answer(outputs) - batch.targets[-1, :, 0]).square().mean()

    def wrong(self, outputs: Tensor, batch: Batch) -> Tensor:
        """1 where the rounded answer isn't the right one."""
        return (self.answer(outputs).round() != batch.targets[-1, :, 0]) * batch.due

    def units(self, batch: Batch) -> int:
        return int(batch.due.sum())

    def lengthened(self, by: int) -> Self:
        return replace(self, max_length=self.max_length + by)

    def exams(self) -> dict[str, Task]:
        longest = self.max_length
        return {"as trained": self, f"{longest} numbers": replace(self, min_length=longest)}


if __name__ == "__main__":
    from dnc_serve.model.tasks.seed_command import main

    sys.exit(main("argmax"))
