"""Argmax: the place of the largest in a sequence of one-hot numbers.

As a command, `python -m dnc_serve.model.tasks.argmax` takes the flags of the `dnc` package's argmax task.
"""

import sys
from dataclasses import dataclass, replace

from torch import Tensor

from dnc_serve.model.recipe import PLAIN_START, Recipe
from dnc_serve.model.tasks.one_hot_numbers import OneHotNumbers
from dnc_serve.model.tasks.task import Task, option


@dataclass(frozen=True, kw_only=True)
class Argmax(OneHotNumbers):
    """The answer is the place of the largest number; the outputs at the end marker should sum up to it.

    Places count from 0; of equal numbers the last one's is asked for.
    """

    name = "argmax"
    recipe = Recipe(
        model={"hidden_size": 100, "num_hidden_layers": 1, "nr_cells": 16, "cell_size": 20, "read_heads": 4},
        start=PLAIN_START,
        iterations=2500,
        batch_size=32,
        lr=3e-3,
        final_lr=1e-4,
    )

    max_length: int = option(4, "numbers in the longest sequence")

    def right(self, numbers: Tensor) -> Tensor:
        return len(numbers) - 1 - numbers.flip(0).argmax(0)  # the last of equal ones

    def answer(self, outputs: Tensor) -> Tensor:
        return outputs[-1].sum(1)

    def exams(self) -> dict[str, Task]:
        longest = self.max_length
        return {"as trained": self, f"{longest} numbers": replace(self, min_length=longest)}


if __name__ == "__main__":
    from dnc_serve.model.tasks.seed_command import main

    sys.exit(main("argmax"))
