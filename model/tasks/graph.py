"""Graph traversal, after the paper's: told a map of stations and lines, then asked where a journey leads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from dnc_serve.model.recipe import LOOKUP_START, Recipe
from dnc_serve.model.tasks.task import Batch, Task, check_range, option, random_int

DIGITS = 10


class Journey(NamedTuple):
    """A question: a start and the lines to take, with the stations that they lead to."""

    start: Tensor  # [B]
    lines: Tensor  # [hops, B]
    reached: Tensor  # [hops, B]


@dataclass(frozen=True, kw_only=True)
class Graph(Task):
    """Triples (from, line, to), one a timestep; then journeys: a start with the first line to take, then further lines.

    Stations are numbers below 100, written as two one-hot digits; an input holds from [20], line [lines], to [20] and
    two flags: told, asked. In a question, `from` is the start at the first hop and empty at the others, `to` is empty,
    and the station reached is due in the same timestep, as logits of two digits.
    """

    name = "graph"
    unit = "digits"
    recipe = Recipe(
        model={"hidden_size": 64, "num_hidden_layers": 1, "nr_cells": 32, "cell_size": 32, "read_heads": 1},
        start=replace(LOOKUP_START, forget_bias=-2.0),
        iterations=6500,
        batch_size=32,
        lr=3e-3,
        final_lr=2e-4,
        carry=0.7,
    )

    min_stations: int = option(6, "stations of the smallest map")
    max_stations: int = option(10, "stations of the largest map")
    lines: int = option(3, "lines; each leaves a station at most once")
    min_triples: int = option(12, "triples of the smallest map")
    max_triples: int = option(20, "triples of the largest map")
    hops: int = option(4, "lines taken on the last journey, and at most on those before")
    journeys: int = option(2, "journeys asked for")

    def __post_init__(self) -> None:
        check_range("the number of stations", self.min_stations, self.max_stations, at_most=DIGITS * DIGITS)
        check_range("the number of triples", self.min_triples, self.max_triples)

    @property
    def input_size(self) -> int:
        return 4 * DIGITS + self.lines + 2

    @property
    def output_size(self) -> int:
        return 2 * DIGITS

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        triples = random_int(self.min_triples, self.max_triples, generator)
        # enough stations for as many triples, no two of which leave one station by one line
        fewest = max(self.min_stations, -(-triples // self.lines))
        stations = random_int(fewest, max(fewest, self.max_stations), generator)
        triple_numbers, journeys = self._random_maps(triples, stations, batch_size, generator)
        names = torch.rand(DIGITS * DIGITS, batch_size, generator=generator).argsort(0)
        rows = torch.arange(batch_size)
        sources, lines, targets = triple_numbers.unbind(2)
        return self.episode(
            torch.stack((names[sources, rows], lines, names[targets, rows]), 2),
            [Journey(names[trip.start, rows], trip.lines, names[trip.reached, rows]) for trip in journeys],
        )

    def episode(self, triples: Tensor, journeys: Sequence[Journey]) -> Batch:
        """The whole episode: triples [n, B, 3] of (from, line, to), and journeys on that map."""
        told, batch_size = triples.shape[:2]
        start_of_line, start_of_to = 2 * DIGITS, 2 * DIGITS + self.lines
        telling = torch.zeros(told, batch_size, self.input_size)
        telling[:, :, :start_of_line] = two_digits(triples[:, :, 0])
        telling[:, :, start_of_line:start_of_to] = one_hot(triples[:, :, 1], self.lines).float()
        telling[:, :, start_of_to:-2] = two_digits(triples[:, :, 2])
        telling[:, :, -2] = 1
        inputs, targets = [telling], [torch.zeros(told, batch_size, self.output_size)]
        for journey in journeys:
            asking = torch.zeros(len(journey.lines), batch_size, self.input_size)
            asking[0, :, :start_of_line] = two_digits(journey.start)
            asking[:, :, start_of_line:start_of_to] = one_hot(journey.lines, self.lines).float()
            asking[:, :, -1] = 1
            inputs.append(asking)
            targets.append(two_digits(journey.reached))
        whole = torch.cat(inputs)
        return Batch(whole, torch.cat(targets), whole[:, :, -1].clone())

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

    def _random_maps(
        self, triples: int, stations: int, batch_size: int, generator: torch.Generator
    ) -> tuple[Tensor, list[Journey]]:
        """Triples [n, B, 3] and journeys, all with stations by number from 0.

        A journey that comes to a station without a line out is mended by leading its last triple somewhere else, so
        that every journey is possible whatever the draw; no journey took that triple before, or it would be mended.
        """
        exits = torch.rand(stations * self.lines, batch_size, generator=generator).argsort(0)[:triples]
        sources, lines = exits // self.lines, exits % self.lines
        has_exit = torch.zeros(stations, batch_size, dtype=torch.bool).scatter_(0, sources, True)
        targets = torch.randint(0, stations, (triples, batch_size), generator=generator)
        rows = torch.arange(batch_size)
        journeys = []
        for number in range(self.journeys):
            start = here = sources[torch.randint(0, triples, (batch_size,), generator=generator), rows]
            last = number == self.journeys - 1
            taken, reached = [], []
            for _ in range(self.hops if last else random_int(1, self.hops, generator)):
                # A random triple out of here: the choice among those is by the largest random number.
                order = torch.rand(triples, batch_size, generator=generator)
                choice = order.masked_fill(sources != here, -1.0).argmax(0)
                elsewhere = sources[torch.randint(0, triples, (batch_size,), generator=generator), rows]
                there = targets[choice, rows]
                here = torch.where(has_exit[there, rows], there, elsewhere)
                targets[choice, rows] = here
                taken.append(lines[choice, rows])
                reached.append(here)
            journeys.append(Journey(start, torch.stack(taken), torch.stack(reached)))
        return torch.stack((sources, lines, targets), 2), journeys

    def lengthened(self, by: int) -> Self:
        return replace(self, hops=self.hops + by)

    def exams(self) -> dict[str, Task]:
        one_journey = replace(self, journeys=1)
        return {
            f"{self.min_triples} to {self.max_triples} triples": one_journey,
            "the same, 3 journeys": replace(self, journeys=3),
            "the same, 8 hops": replace(one_journey, hops=8),
            "3 to 11 triples": replace(one_journey, min_stations=2, min_triples=3, max_triples=11),
        }


BUNDLED = Graph()
"""The task of the bundled model."""


def two_digits(stations: Tensor) -> Tensor:
    """Numbers below 100, [...], as two one-hot digits, [..., 20]."""
    return torch.cat((one_hot(stations // DIGITS, DIGITS), one_hot(stations % DIGITS, DIGITS)), -1).float()
