"""Traversal, after the Nature paper: told a map as that of an underground, asked where journeys lead."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dnc_serve.model.recipe import LOOKUP_START, Recipe
from dnc_serve.model.tasks.map_task import MapTask
from dnc_serve.model.tasks.planar_maps import Maps
from dnc_serve.model.tasks.task import Batch, option, random_int
from dnc_serve.model.tasks.triples import EMPTY, Journey, random_names


@dataclass(frozen=True, kw_only=True)
class Traversal(MapTask):
    """A journey is a random walk: a start with the first line to take, then further lines, each answered at once."""

    name = "traversal"
    recipe = Recipe(
        model={"hidden_size": 64, "num_hidden_layers": 1, "nr_cells": 48, "cell_size": 40, "read_heads": 1},
        start=replace(LOOKUP_START, forget_bias=-2.0),
        iterations=8000,
        batch_size=16,
        lr=3e-3,
        final_lr=2e-4,
        carry=0.5,
    )

    hops: int = option(4, "lines taken on the last journey, and at most on those before")
    journeys: int = option(3, "journeys asked for")

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        maps = self.maps(batch_size, generator)
        names = random_names(maps.stations, batch_size, generator)
        journeys = []
        for number in range(self.journeys):
            hops = self.hops if number == self.journeys - 1 else random_int(1, self.hops, generator)
            journeys.append(walked(maps, hops, generator).named(names))
        return self.episode(maps.named(names), journeys)


def walked(maps: Maps, hops: int, generator: torch.Generator) -> Journey:
    """A random walk on each map, from a random station."""
    sources, lines, targets = maps.triples.unbind(2)
    rows = torch.arange(sources.size(1))
    start = here = sources[_one_of(sources != EMPTY, generator), rows]
    taken: list[Tensor] = []
    reached: list[Tensor] = []
    for _ in range(hops):
        choice = _one_of(sources == here, generator)
        here = targets[choice, rows]
        taken.append(lines[choice, rows])
        reached.append(here)
    return Journey(start, torch.stack(taken), torch.stack(reached))


def _one_of(choices: Tensor, generator: torch.Generator) -> Tensor:
    """The place [B] of one of those in [n, B] that are true, each as likely."""
    return torch.rand(choices.shape, generator=generator).masked_fill(~choices, -1.0).argmax(0)
