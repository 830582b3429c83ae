"""Adding: the sum of a sequence of one-hot numbers.

As a command, `python -m dnc_serve.model.tasks.adding` takes the flags of the `dnc` package's adding task.
"""

import sys
from dataclasses import dataclass, replace

from torch import Tensor

from dnc_serve.model.recipe import PLAIN_START, Recipe
from dnc_serve.model.tasks.one_hot_numbers import OneHotNumbers
from dnc_serve.model.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Adding(OneHotNumbers):
    """The answer is the sum of the numbers; all outputs together should sum up to it."""

    name = "adding"
    recipe = Recipe(
        model={"hidden_size": 64, "num_hidden_layers": 1, "nr_cells": 16, "cell_size": 20, "read_heads": 4},
        start=PLAIN_START,
        iterations=1500,
        batch_size=32,
        lr=3e-3,
        final_lr=1e-4,
    )

    def right(self, numbers: Tensor) -> Tensor:
        return numbers.sum(0)

    def answer(self, outputs: Tensor) -> Tensor:
        return outputs.sum((0, 2))

    def exams(self) -> dict[str, Task]:
        longest, twice = self.max_length, 2 * self.max_length
        return {
            "as trained": self,
            f"{longest} numbers": replace(self, min_length=longest),
            f"{twice} numbers": replace(self, min_length=twice, max_length=twice),
        }


if __name__ == "__main__":
    from dnc_serve.model.tasks.seed_command import main

    sys.exit(main("adding"))
