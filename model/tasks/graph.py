"""Graph traversal, after the paper's: told a map of stations and lines, then asked where a journey leads."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from dnc_serve.model.recipe import LOOKUP_START, Recipe
from dnc_serve.model.tasks.task import Batch, Task, check_range, option, random_int
from dnc_serve.model.tasks.triples import MOST_STATIONS, Journey, Triples, random_names


@dataclass(frozen=True, kw_only=True)
class Graph(Triples):
    """A random map, on which each line leaves a station at most once; then journeys, each answered hop by hop."""

    name = "graph"
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
        check_range("the number of stations", self.min_stations, self.max_stations, at_most=MOST_STATIONS)
        check_range("the number of triples", self.min_triples, self.max_triples)

    @property
    def line_channels(self) -> int:
        return self.lines

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        triples = random_int(self.min_triples, self.max_triples, generator)
        # enough stations for as many triples, no two of which leave one station by one line
        fewest = max(self.min_stations, -(-triples // self.lines))
        stations = random_int(fewest, max(fewest, self.max_stations), generator)
        triple_numbers, journeys = self._random_maps(triples, stations, batch_size, generator)
        names = random_names(stations, batch_size, generator)
        rows = torch.arange(batch_size)
        sources, lines, targets = triple_numbers.unbind(2)
        named = torch.stack((names[sources, rows], lines, names[targets, rows]), 2)
        return self.episode(named, [journey.named(names) for journey in journeys])

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
