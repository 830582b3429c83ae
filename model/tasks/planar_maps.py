"""Random maps as the paper's: stations in a square, each joined to those that are nearest; and the ways on them."""

from typing import NamedTuple

import torch
from torch import Tensor

from dnc_serve.model.tasks.task import random_share
from dnc_serve.model.tasks.triples import EMPTY, shuffled


class Maps(NamedTuple):
    """A map for each row of a batch, with stations by number from 0, as triples in the order in which they are told."""

    triples: Tensor  # [n, B, 3]: from, line, to; EMPTY after a row's last
    stations: int

    @property
    def joined(self) -> Tensor:
        """Whether a line leads from one station to another, [B, stations, stations]."""
        sources, _, targets = self.triples.unbind(2)
        told, rows = (sources != EMPTY).nonzero(as_tuple=True)
        joined = torch.zeros(self.triples.size(1), self.stations, self.stations, dtype=torch.bool)
        joined[rows, sources[told, rows], targets[told, rows]] = True
        return joined

    def named(self, names: Tensor) -> Tensor:
        """The triples [n, B, 3] of stations that have these names [stations, B]."""
        sources, lines, targets = self.triples.unbind(2)
        rows = torch.arange(names.size(1))
        silent = sources == EMPTY
        return torch.stack(
            (names[sources, rows].masked_fill(silent, EMPTY), lines, names[targets, rows].masked_fill(silent, EMPTY)), 2
        )


def planar_maps(stations: int, neighbours: int, lines: int, batch_size: int, generator: torch.Generator) -> Maps:
    """Stations uniform in a square, each joined in both directions to its nearest `neighbours`, and to whom it is near.

    Lines have random names, no two alike out of one station. Half of the time a map has no more of them than its
    busiest station needs, so that a name comes again at station after station, as that of a real line does. Raises
    ValueError where there are too few.
    """
    places = torch.rand(batch_size, stations, 2, generator=generator)
    apart = torch.cdist(places, places)
    apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = apart.topk(min(neighbours, stations - 1), largest=False).indices
    joined = torch.zeros_like(apart, dtype=torch.bool).scatter_(2, nearest, True)
    joined |= joined.transpose(1, 2).clone()
    if (most := int(joined.sum(2).max())) > lines:
        raise ValueError(f"lines is {lines}; {most} leave one station; expected at least as many")
    used = most if random_share(generator) < 0.5 else lines
    leaving = torch.rand(batch_size, stations, used, generator=generator).argsort(2)
    place = leaving.gather(2, (joined.cumsum(2) - 1).clamp(0, used - 1))
    line = torch.rand(batch_size, lines, generator=generator).argsort(1).gather(1, place.flatten(1)).view_as(place)
    rows, sources, targets = joined.nonzero(as_tuple=True)
    counts = joined.sum((1, 2))
    places_told = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    triples = torch.full((int(counts.max()), batch_size, 3), EMPTY)
    triples[places_told, rows] = torch.stack((sources, line[rows, sources, targets], targets), 1)
    return Maps(shuffled(triples, generator), stations)


def distances(joined: Tensor, at_most: int) -> tuple[Tensor, Tensor]:
    """From each station to each, [B, stations, stations]: the fewest hops, and how many ways of so few there are.

    Hops are at_most + 1 where it takes more.
    """
    step = joined.double()
    hops = torch.full(joined.shape, at_most + 1)
    ways = torch.zeros(joined.shape, dtype=torch.double)
    reached = torch.eye(joined.size(1), dtype=torch.double).expand_as(step)
    hops.diagonal(dim1=1, dim2=2).fill_(0)
    ways.diagonal(dim1=1, dim2=2).fill_(1)
    for length in range(1, at_most + 1):
        reached = reached @ step
        new = (reached > 0) & (hops > length)
        hops[new], ways[new] = length, reached[new]
    return hops, ways
