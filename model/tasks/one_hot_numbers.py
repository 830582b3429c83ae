"""What adding and argmax have in common: one-hot numbers, an end marker, and one answer to them."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from dnc_serve.model.tasks.task import Batch, Task, check_range, option, random_int


@dataclass(frozen=True, kw_only=True)
class OneHotNumbers(Task):
    """One-hot numbers from 0 to size - 2, then an end marker in the last channel, at which the answer is due."""

    unit = "answers"

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

    @abstractmethod
    def right(self, numbers: Tensor) -> Tensor:
        """The right answers [B] to numbers [n, B]."""

    @abstractmethod
    def answer(self, outputs: Tensor) -> Tensor:
        """The answer [B] that outputs [T, B, O] hold."""

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        length = random_int(self.min_length, self.max_length, generator)
        return self.episode(torch.randint(0, self.size - 1, (length, batch_size), generator=generator))

    def episode(self, numbers: Tensor) -> Batch:
        """The whole episode for numbers [n, B]; the target is at the end marker's timestep, in channel 0."""
        marker = torch.full_like(numbers[:1], self.size - 1)
        inputs = torch.nn.functional.one_hot(torch.cat((numbers, marker)), self.size).float()
        targets = torch.zeros_like(inputs)
        targets[-1, :, 0] = self.right(numbers).float()
        due = torch.zeros(inputs.shape[:2])
        due[-1] = 1
        return Batch(inputs, targets, due)

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
