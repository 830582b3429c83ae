"""The London Underground as a map for the graph tasks, from the published tables of stations, lines and connections."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

FILES = {
    "london.stations.csv": ("id", "latitude", "longitude", "name", "zone"),
    "london.lines.csv": ("line", "name"),
    "london.connections.csv": ("station1", "station2", "line"),
}
DIRECTIONS = ("east", "north", "west", "south")  # a quarter of a circle each, counted from the first


@dataclass(frozen=True)
class Station:
    """A station as the tables have it."""

    name: str
    latitude: float
    longitude: float
    zone: float  # 1.5: in the zones 1 and 2


@dataclass(frozen=True)
class Underground:
    """Stations and triples (from, line with its direction, to), of which no two leave one station by one line.

    As in the paper not every station is told: those of zone 1 at which at least three lines call, 20 of 302. A line
    leads from one of them to the next of them that it comes to.
    """

    triples: tuple[tuple[str, str, str], ...]

    @classmethod
    @lru_cache(maxsize=4)
    def read(cls, folder: str | Path, zones_below: float = 2.0, fewest_lines: int = 3) -> Self:
        """From the folder of the three tables. Raises ValueError with the file and what it lacks, OSError."""
        tables = [_rows(Path(folder) / name, columns) for name, columns in FILES.items()]
        try:
            stations = {
                row["id"]: Station(row["name"], float(row["latitude"]), float(row["longitude"]), float(row["zone"]))
                for row in tables[0]
            }
            lines = {row["line"]: row["name"] for row in tables[1]}
            beside: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
            for row in tables[2]:
                for here, there in ((row["station1"], row["station2"]), (row["station2"], row["station1"])):
                    beside[lines[row["line"]]][stations[here].name].add(stations[there].name)
        except (KeyError, ValueError) as exc:
            raise ValueError(f"{folder}: {exc} is in one table and not as another has it") from exc
        calls = [station for along in beside.values() for station in along]
        places = {station.name: station for station in stations.values()}
        told = {
            name for name, station in places.items() if station.zone < zones_below and calls.count(name) >= fewest_lines
        }
        return cls(tuple(_triples(beside, places, told)))

    @property
    def stations(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(name for source, _, target in self.triples for name in (source, target)))

    @property
    def lines(self) -> list[str]:
        """With their directions, in order of appearance."""
        return list(dict.fromkeys(line for _, line, _ in self.triples))

    def numbers(self) -> Tensor:
        """The triples [n, 3], with stations and lines by their places in the lists of them."""
        stations, lines = self.stations, self.lines
        return torch.tensor([[stations.index(a), lines.index(line), stations.index(b)] for a, line, b in self.triples])


def _triples(
    beside: dict[str, dict[str, set[str]]], places: dict[str, Station], told: set[str]
) -> Iterator[tuple[str, str, str]]:
    """The ways from each of the told stations to the next along each line, by line and direction."""
    for line, along in sorted(beside.items()):
        for source in sorted(told & set(along)):
            targets = sorted(_next_told(along, source, told))
            for target, direction in zip(targets, _directions(places, source, targets), strict=True):
                yield source, f"{line} {direction}", target


def _next_told(along: dict[str, set[str]], source: str, told: set[str]) -> set[str]:
    """The stations to which a line leads that calls at no other of the told ones on its way."""
    found: set[str] = set()
    passed = {source}
    ahead = list(along[source])
    while ahead:
        here = ahead.pop()
        if here in passed:
            continue
        passed.add(here)
        if here in told:
            found.add(here)
        else:
            ahead.extend(along[here])
    return found


def _directions(places: dict[str, Station], source: str, targets: Sequence[str]) -> list[str]:
    """A direction for each target, by the compass, and the next one that is free where two lie in the same."""
    if len(targets) > len(DIRECTIONS):
        raise ValueError(f"a line leads from {source} to {len(targets)} stations; expected at most {len(DIRECTIONS)}")
    given: list[str] = []
    here = places[source]
    for target in targets:
        there = places[target]
        east = (there.longitude - here.longitude) * math.cos(math.radians(here.latitude))
        quarter = round(math.atan2(there.latitude - here.latitude, east) / (math.pi / 2)) % 4
        free = [DIRECTIONS[(quarter + turn) % 4] for turn in (0, 1, 3, 2)]
        given.append(next(direction for direction in free if direction not in given))
    return given


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if lacking := [column for column in columns if column not in (reader.fieldnames or ())]:
            raise ValueError(f"{path} has no column {', '.join(lacking)}; expected {', '.join(columns)}")
        return list(reader)
