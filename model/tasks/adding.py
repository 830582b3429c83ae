"""Adding: the sum of a sequence of one-hot numbers.

As a command, `python -m dnc_serve.model.tasks.adding` takes the flags of the `dnc` package's adding task.
"""

import sys
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from dnc_serve.model.recipe import PLAIN_START, Recipe
from dnc_serve.model.tasks.task import Batch, Task, check_range, option, random_int


@dataclass(frozen=True, kw_only=True)
class Adding(Task):
    """One-hot numbers from 0 to size - 2, then an end marker; all outputs together should sum up to the sum."""

    name = "adding"
    unit = "answers"
    recipe = Recipe(
        model={"hidden_size": 64, "num_hidden_layers": 1, "nr_cells": 16, "cell_size": 20, "read_heads": 4},
        start=PLAIN_START,
        iterations=1500,
        batch_size=32,
        lr=3e-3,
        final_lr=1e-4,
    )

    size: int = option(6, "channels of an input; numbers are below size - 1")
    min_length: int = option(2, "numbers in the shortest sequence")
    max_length: int = option(20, "numbers in the longest sequence")

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
        return marked_one_hot(numbers, self.size, numbers.sum(0))

    def answer(self, outputs: Tensor) -> Tensor:
        """The answer [B] that outputs [T, B, O] hold."""
        return outputs.sum((0, 2))

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
        longest, twice = self.max_length, 2 * self.max_length
        return {
            "as trained": self,
            f"{longest} numbers": replace(self, min_length=longest),
            f"{twice} numbers": replace(self, min_length=twice, max_length=twice),
        }


def marked_one_hot(numbers: Tensor, size: int, answers: Tensor) -> Batch:
    """Numbers [n, B] as one-hot vectors with an end marker in the last channel, and answers [B] due there."""
    marker = torch.full_like(numbers[:1], size - 1)
    inputs = torch.nn.functional.one_hot(torch.cat((numbers, marker)), size).float()
    targets = torch.zeros_like(inputs)
    targets[-1, :, 0] = answers.float()
    due = torch.zeros(inputs.shape[:2])
    due[-1] = 1
    return Batch(inputs, targets, due)


if __name__ == "__main__":
    from dnc_serve.model.tasks.seed_command import main

    sys.exit(main("adding"))
