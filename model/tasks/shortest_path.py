"""Shortest path, after the Nature paper: told a map as that of an underground, asked for the way from here to there."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dnc_serve.model.recipe import LOOKUP_START, Recipe
from dnc_serve.model.tasks.map_task import MapTask
from dnc_serve.model.tasks.planar_maps import distances
from dnc_serve.model.tasks.task import Batch, option, random_int
from dnc_serve.model.tasks.triples import EMPTY, joined, random_names, two_digits


@dataclass(frozen=True, kw_only=True)
class ShortestPath(MapTask):
    """A question is one timestep with `from` and `to`; silent ones to plan in follow, then the stations on the way.

    An answer is due in each timestep that asks and has nothing else in it, the last of them being the end of the way.
    Unlike in the paper only stations are asked for, not the lines between them, the model isn't fed its own answers,
    and none but ends with a single shortest way between them are asked about, so that there is one right answer.
    """

    name = "shortest_path"
    recipe = Recipe(
        # Sizes are those of traversal, from whose weights it may start.
        model={"hidden_size": 64, "num_hidden_layers": 1, "nr_cells": 48, "cell_size": 40, "read_heads": 1},
        start=replace(LOOKUP_START, forget_bias=-2.0),
        iterations=8000,
        batch_size=16,
        lr=2e-3,
        final_lr=2e-4,
        carry=0.3,
    )

    max_stations: int = option(8, "stations of the largest map")
    hops: int = option(4, "hops of the longest way asked for")
    planning: int = option(6, "silent timesteps before an answer; 10 in the paper")
    questions: int = option(2, "ways asked for")

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        maps = self.maps(batch_size, generator)
        names = random_names(maps.stations, batch_size, generator)
        rows = torch.arange(batch_size)
        parts = [self.tell(maps.named(names))]
        for _ in range(self.questions):
            path = shortest_paths(maps.joined, random_int(1, self.hops, generator), generator)
            parts.append(self.ask(torch.where(path == EMPTY, EMPTY, names[path, rows])))
        return joined(parts)

    def ask(self, path: Tensor) -> Batch:
        """The timesteps of a question for a way [1 + hops, B], its start included; EMPTY after a row's last station."""
        hops, batch_size = len(path) - 1, path.size(1)
        ends = path.gather(0, (path != EMPTY).sum(0, keepdim=True) - 1)
        nothing = torch.full((hops, batch_size), EMPTY)
        silent = torch.full((self.planning, batch_size), EMPTY)
        inputs = torch.cat(
            (
                self.encode(path[:1], nothing[:1], ends, asked=True),
                self.encode(silent, silent, silent, asked=False),
                self.encode(nothing, nothing, nothing, asked=True),
            )
        )
        targets, due = inputs.new_zeros(len(inputs), batch_size, self.output_size), inputs.new_zeros(inputs.shape[:2])
        targets[-hops:] = two_digits(path[1:])
        due[-hops:] = (path[1:] != EMPTY).float()
        return Batch(inputs, targets, due)


def shortest_paths(joined: Tensor, hops: int, generator: torch.Generator) -> Tensor:
    """The stations [1 + hops, B] of ways that are the only shortest one between their ends; EMPTY after the end.

    On each map of joined stations [B, S, S] a way of `hops` hops, or of as many as the map has.
    """
    batch_size, stations, _ = joined.shape
    length, ways = distances(joined, hops)
    eligible = (ways == 1) & (length > 0)
    chance = torch.rand(length.shape, generator=generator)
    choice = torch.where(eligible, length + chance, -1.0).flatten(1).argmax(1)
    here, end = choice // stations, choice % stations
    rows = torch.arange(batch_size)
    path = [here]
    for _ in range(hops):
        # One of the stations beside this one is nearer to the end, or there would be another way.
        nearer = joined[rows, here] & (length[rows, :, end] == (length[rows, here, end] - 1).unsqueeze(1))
        arrived = here == end
        path.append(torch.where(arrived, EMPTY, nearer.int().argmax(1)))
        here = torch.where(arrived, end, path[-1])
    return torch.stack(path)
