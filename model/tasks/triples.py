"""What tasks on maps and family trees have in common: facts told as triples, and stations answered by two digits."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from dnc_serve.model.tasks.task import Batch, Task

DIGITS = 10
MOST_STATIONS = DIGITS * DIGITS
EMPTY = -1
"""In place of a station or a line: nothing is fed for it."""


class Journey(NamedTuple):
    """A question: a start and the lines to take, with the stations that they lead to."""

    start: Tensor  # [B]
    lines: Tensor  # [hops, B]
    reached: Tensor  # [hops, B]

    def named(self, names: Tensor) -> "Journey":
        """The same, of stations that have these names [stations, B] in place of their places among them."""
        rows = torch.arange(names.size(1))
        return Journey(names[self.start, rows], self.lines, names[self.reached, rows])


@dataclass(frozen=True, kw_only=True)
class Triples(Task):
    """Triples (from, line, to), one a timestep; then questions, whose answers are stations.

    Stations are numbers below 100, written as two one-hot digits; an input holds from [20], line [lines], to [20] and
    two flags: told, asked. Answers are logits of two digits.
    """

    unit = "digits"

    @property
    @abstractmethod
    def line_channels(self) -> int:
        """How many lines, or relations, an input can name."""

    @property
    def input_size(self) -> int:
        return 4 * DIGITS + self.line_channels + 2

    @property
    def output_size(self) -> int:
        return 2 * DIGITS

    def encode(self, source: Tensor, line: Tensor, target: Tensor, *, asked: bool) -> Tensor:
        """Inputs [n, B, I] for numbers [n, B], EMPTY where there is none; told and all empty: silence."""
        lines = one_hot(line + 1, self.line_channels + 1)[..., 1:].float()
        flag = torch.ones_like(source) if asked else (source != EMPTY).long()
        flags = torch.stack((torch.zeros_like(flag), flag) if asked else (flag, torch.zeros_like(flag)), -1)
        return torch.cat((two_digits(source), lines, two_digits(target), flags.float()), -1)

    def tell(self, triples: Tensor) -> Batch:
        """The timesteps that tell triples [n, B, 3]; those of EMPTY are silent. Nothing is due."""
        inputs = self.encode(*triples.unbind(2), asked=False)
        return Batch(
            inputs, inputs.new_zeros(*triples.shape[:2], self.output_size), inputs.new_zeros(triples.shape[:2])
        )

    def travel(self, journey: Journey) -> Batch:
        """The timesteps that ask for a journey, each answered at once with the station reached.

        `from` is the start at the first hop and empty at the others; `to` is empty.
        """
        nowhere = torch.full_like(journey.lines, EMPTY)
        source = torch.cat((journey.start.unsqueeze(0), nowhere[1:]))
        inputs = self.encode(source, journey.lines, nowhere, asked=True)
        return Batch(inputs, two_digits(journey.reached), inputs[:, :, -1].clone())

    def episode(self, triples: Tensor, journeys: Sequence[Journey]) -> Batch:
        """The whole episode: triples [n, B, 3] of (from, line, to), and journeys on that map."""
        return joined([self.tell(triples), *map(self.travel, journeys)])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of the digits that are due, in nats."""
        due = batch.due > 0
        logits = outputs[due].view(-1, DIGITS)
        return cross_entropy(logits, batch.targets[due].view(-1, DIGITS))

    def wrong(self, outputs: Tensor, batch: Batch) -> Tensor:
        said = outputs.view(*outputs.shape[:2], 2, DIGITS).argmax(3)
        right = batch.targets.view(*outputs.shape[:2], 2, DIGITS).argmax(3)
        return torch.sum(said != right, 2) * batch.due

    def units(self, batch: Batch) -> int:
        return 2 * int(batch.due.sum())


def joined(parts: Sequence[Batch]) -> Batch:
    """One after the other in time."""
    return Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def random_names(stations: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Numbers [stations, B] below 100, no two alike in a row of the batch."""
    return torch.rand(MOST_STATIONS, batch_size, generator=generator).argsort(0)[:stations]


def shuffled(triples: Tensor, generator: torch.Generator) -> Tensor:
    """The triples [n, B, 3] of each row in an order of its own, those of EMPTY last."""
    order = torch.rand(triples.shape[:2], generator=generator).masked_fill(triples[:, :, 0] == EMPTY, 2.0).argsort(0)
    return triples.gather(0, order.unsqueeze(2).expand_as(triples))


def two_digits(stations: Tensor) -> Tensor:
    """Numbers below 100, [...], as two one-hot digits, [..., 20]; zeros for EMPTY."""
    tens = torch.where(stations == EMPTY, EMPTY, stations // DIGITS)
    ones = torch.where(stations == EMPTY, EMPTY, stations % DIGITS)
    return torch.cat((one_hot(tens + 1, DIGITS + 1)[..., 1:], one_hot(ones + 1, DIGITS + 1)[..., 1:]), -1).float()
