"""A map of one's own, with names, for the bundled graph model."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from dnc_serve.model.tasks.graph import BUNDLED, DIGITS, Journey

HEADER = ("from", "line", "to")
MOST_STATIONS = DIGITS * DIGITS


@dataclass(frozen=True)
class StationMap:
    """Stations joined by lines: triples (from, line, to), of which no two leave one station by one line.

    Names get their numbers in order of appearance, so that a map that grew at its end keeps the numbers it had. Raises
    ValueError for more than 100 stations or 3 lines, and for two ways out of a station by one line.
    """

    triples: tuple[tuple[str, str, str], ...]

    def __post_init__(self) -> None:
        if not self.triples:
            raise ValueError("the map is empty; expected rows of from, line, to")
        if len(self.stations) > MOST_STATIONS:
            raise ValueError(f"the map has {len(self.stations)} stations; expected at most {MOST_STATIONS}")
        if len(self.lines) > BUNDLED.lines:
            raise ValueError(f"the map has lines {', '.join(self.lines)}; expected at most {BUNDLED.lines}")
        ways: dict[tuple[str, str], str] = {}
        for source, line, target in self.triples:
            if ways.setdefault((source, line), target) != target:
                raise ValueError(f"{line} leads from {source} to {ways[source, line]} and to {target}; expected one")

    @classmethod
    def from_csv(cls, path: str | Path) -> Self:
        """Reads rows of from, line, to; a first row with just these words is a header. Raises ValueError, OSError."""
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
        if rows and tuple(cell.lower() for cell in rows[0]) == HEADER:
            del rows[0]
        return cls.from_rows(rows)

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[str]]) -> Self:
        """From rows of three names; repeated rows count once."""
        triples: dict[tuple[str, str, str], None] = {}
        for number, row in enumerate(rows, 1):
            if len(row) != 3 or not all(row):
                raise ValueError(f"row {number} of the map is {list(row)}; expected from, line, to")
            triples[row[0], row[1], row[2]] = None
        return cls(tuple(triples))

    @property
    def stations(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(name for source, _, target in self.triples for name in (source, target)))

    @property
    def lines(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(line for _, line, _ in self.triples))

    def number(self, station: str) -> int:
        """The two-digit name under which the model knows a station. Raises ValueError for an unknown one."""
        if station not in self.stations:
            raise ValueError(f"station is {station!r}; expected one of {', '.join(self.stations)}")
        return self.stations.index(station) * 37 % MOST_STATIONS  # 37: neighbours in the list share no digit

    def encode(self) -> npt.NDArray[np.float32]:
        """What tells the bundled model this map: inputs [n, 45]."""
        triples = [
            (self.number(source), self.lines.index(line), self.number(target)) for source, line, target in self.triples
        ]
        batch = BUNDLED.episode(torch.tensor(triples).unsqueeze(1), [])
        inputs: npt.NDArray[np.float32] = batch.inputs[:, 0].numpy()
        return inputs

    def encode_journey(self, start: str, lines: Sequence[str]) -> npt.NDArray[np.float32]:
        """What asks the bundled model where a journey leads, station by station: inputs [hops, 45]."""
        if not lines:
            raise ValueError("the journey takes no line; expected at least one")
        for line in lines:
            if line not in self.lines:
                raise ValueError(f"line is {line!r}; expected one of {', '.join(self.lines)}")
        taken = torch.tensor([[self.lines.index(line)] for line in lines])
        journey = Journey(torch.tensor([self.number(start)]), taken, torch.zeros_like(taken))
        batch = BUNDLED.episode(torch.zeros(0, 1, 3, dtype=torch.long), [journey])
        inputs: npt.NDArray[np.float32] = batch.inputs[:, 0].numpy()
        return inputs

    def decode(self, outputs: npt.ArrayLike) -> list[str]:
        """The stations that outputs [hops, 20] name; a number that no station has is given as it is."""
        digits = np.asarray(outputs).reshape(-1, 2, DIGITS).argmax(2)
        names = {self.number(station): station for station in self.stations}
        return [names.get(int(tens * DIGITS + ones), f"{tens}{ones}") for tens, ones in digits]

    def walk(self, start: str, lines: Sequence[str]) -> list[str]:
        """The stations reached by plain look-up; it ends early where a line doesn't leave the station reached."""
        ways = {(source, line): target for source, line, target in self.triples}
        reached: list[str] = []
        here = start
        for line in lines:
            if (here, line) not in ways:
                break
            here = ways[here, line]
            reached.append(here)
        return reached
