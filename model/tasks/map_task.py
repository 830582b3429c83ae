"""Tasks on maps: random ones to train on, and one of a real underground to be examined on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from dnc_serve.model.tasks.planar_maps import Maps, planar_maps
from dnc_serve.model.tasks.task import Task, check_range, option, random_int
from dnc_serve.model.tasks.triples import MOST_STATIONS, Triples, shuffled
from dnc_serve.model.tasks.underground import Underground


@dataclass(frozen=True, kw_only=True)
class MapTask(Triples):
    """Random maps as `planar_maps` makes them; where `data` names the folder of a real one, exams on that too."""

    min_stations: int = option(4, "stations of the smallest map")
    max_stations: int = option(10, "stations of the largest map")
    min_neighbours: int = option(1, "least number of nearest stations that a station is joined to")
    max_neighbours: int = option(3, "greatest number of them")
    lines: int = option(40, "names of lines")
    data: str = option("", "the folder of the underground's stations, lines and connections")
    real: bool = option(False, "ask about the underground alone")

    def __post_init__(self) -> None:
        check_range("the number of stations", self.min_stations, self.max_stations, 2, MOST_STATIONS)
        check_range("the number of neighbours", self.min_neighbours, self.max_neighbours)
        if self.real and not self.data:
            raise ValueError("real is True; expected data too, the folder of the underground")

    @property
    def line_channels(self) -> int:
        return self.lines

    def moved(self, source: Path) -> Self:
        return replace(self, data=str(source.resolve()))

    def maps(self, batch_size: int, generator: torch.Generator) -> Maps:
        """Maps to tell, whose triples come in any order."""
        if not self.real:
            stations = random_int(self.min_stations, self.max_stations, generator)
            neighbours = random_int(self.min_neighbours, self.max_neighbours, generator)
            return planar_maps(stations, neighbours, self.lines, batch_size, generator)
        underground = Underground.read(self.data)
        if len(underground.lines) > self.lines:
            raise ValueError(f"lines is {self.lines}; the underground has {len(underground.lines)}")
        # Each episode has names of its own for the lines: the model knows none of them.
        triples = underground.numbers().unsqueeze(1).repeat(1, batch_size, 1)
        names = torch.rand(self.lines, batch_size, generator=generator).argsort(0)
        triples[:, :, 1] = names[triples[:, :, 1], torch.arange(batch_size)]
        return Maps(shuffled(triples, generator), len(underground.stations))

    def lengthened(self, by: int) -> Self:
        return replace(self, max_stations=min(self.max_stations + by, MOST_STATIONS))

    def exams(self) -> dict[str, Task]:
        largest = replace(self, min_stations=self.max_stations)
        exams: dict[str, Task] = {"as trained": self, f"{self.max_stations} stations": largest}
        if self.data:
            exams["the underground"] = replace(self, real=True)
        return exams
