"""Repeat copy: say a sequence a given number of times, then an end marker; data and cost are DeepMind's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dnc_serve.model.recipe import Recipe
from dnc_serve.model.tasks.task import Batch, Task, check_range, option, random_bits


@dataclass(frozen=True, kw_only=True)
class RepeatCopy(Task):
    """A start marker, n vectors of fair bits, the number of repeats in a channel of its own; then the answer is due.

    Sequences of a batch differ in length and are padded with zeros to the longest.
    """

    name = "repeat_copy"
    recipe = Recipe(
        model={"hidden_size": 64, "num_hidden_layers": 1, "nr_cells": 16, "cell_size": 16, "read_heads": 4},
        iterations=6000,
        optimizer="rmsprop",
        lr=3e-4,
        final_lr=2e-5,
        max_grad_norm=50.0,
    )

    bits: int = option(4, "bits of a vector")
    min_length: int = option(1, "vectors in the shortest sequence")
    max_length: int = option(2, "vectors in the longest sequence")
    min_repeats: int = option(1, "fewest repeats")
    max_repeats: int = option(2, "most repeats")
    norm_max: int = option(10, "the number of repeats is fed divided by this")
    time_average: bool = option(False, "average each sequence's cost over the timesteps that are due")
    in_bits: bool = option(False, "count the cost in bits instead of nats")

    def __post_init__(self) -> None:
        check_range("the sequence's length", self.min_length, self.max_length)
        check_range("the number of repeats", self.min_repeats, self.max_repeats)

    @property
    def input_size(self) -> int:
        return self.bits + 2

    @property
    def output_size(self) -> int:
        return self.bits + 1

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        lengths = torch.randint(self.min_length, self.max_length + 1, (batch_size,), generator=generator)
        repeats = torch.randint(self.min_repeats, self.max_repeats + 1, (batch_size,), generator=generator)
        patterns = [random_bits((int(length), self.bits), generator) for length in lengths]
        return self.assemble(patterns, repeats.tolist())

    def assemble(self, patterns: Sequence[Tensor], repeats: Sequence[int]) -> Batch:
        """The episodes for given patterns [n, bits], one for each row of the batch, and how often each is repeated."""
        longest = max(len(pattern) * (times + 1) + 3 for pattern, times in zip(patterns, repeats, strict=True))
        inputs = torch.zeros(longest, len(patterns), self.input_size, dtype=patterns[0].dtype)
        targets = torch.zeros(longest, len(patterns), self.output_size, dtype=patterns[0].dtype)
        due = torch.zeros(longest, len(patterns), dtype=patterns[0].dtype)
        for row, (pattern, times) in enumerate(zip(patterns, repeats, strict=True)):
            length = len(pattern)
            first, end = length + 2, length * (times + 1) + 2
            inputs[0, row, self.bits] = 1
            inputs[1 : length + 1, row, : self.bits] = pattern
            inputs[length + 1, row, self.bits + 1] = times / self.norm_max
            targets[first:end, row, : self.bits] = pattern.repeat(times, 1)
            targets[end, row, self.bits] = 1
            due[first : end + 1, row] = 1
        return Batch(inputs, targets, due)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return masked_sigmoid_cross_entropy(
            outputs, batch.targets, batch.due, time_average=self.time_average, in_bits=self.in_bits
        )

    def lengthened(self, by: int) -> Self:
        return replace(self, max_length=self.max_length + by)

    def exams(self) -> dict[str, Task]:
        return {
            "as trained": self,
            "longest, most repeats": replace(self, min_length=self.max_length, min_repeats=self.max_repeats),
        }


def masked_sigmoid_cross_entropy(
    logits: Tensor, targets: Tensor, due: Tensor, *, time_average: bool = False, in_bits: bool = False
) -> Tensor:
    """DeepMind's cost: summed over channels and the timesteps that are due, averaged over the batch.

    `logits` and `targets` [T, B, O], `due` [T, B]. In nats, or in bits.
    """
    costs = (binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(2) * due).sum(0)
    if time_average:
        # float32's epsilon at any precision, as there: a sequence without a due timestep costs nothing
        costs = costs / (due.sum(0) + torch.finfo(torch.float32).eps)
    cost = costs.mean()
    return cost / math.log(2) if in_bits else cost
