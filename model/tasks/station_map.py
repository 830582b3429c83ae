"""A map of one's own, with names, for a model that was trained on maps: the bundled graph model, or another."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from dnc_serve.model.tasks.graph import BUNDLED
from dnc_serve.model.tasks.triples import DIGITS, MOST_STATIONS, Journey, Triples

HEADER = ("from", "line", "to")


@dataclass(frozen=True)
class StationMap:
    """Stations joined by lines: triples (from, line, to), of which no two leave one station by one line.

    Names get their numbers in order of appearance, so that a map that grew at its end keeps the numbers it had. Raises
    ValueError for more than 100 stations, for more lines than the task knows (3 as bundled), and for two ways out of a
    station by one line.
    """

    triples: tuple[tuple[str, str, str], ...]
    task: Triples = BUNDLED

    def __post_init__(self) -> None:
        if not self.triples:
            raise ValueError("the map is empty; expected rows of from, line, to")
        _check(
            ((f"row {number} of the map", row) for number, row in enumerate(self.triples, 1)), self.task.line_channels
        )
        if len(self.stations) > MOST_STATIONS:
            raise ValueError(f"the map has {len(self.stations)} stations; the model takes at most {MOST_STATIONS}")

    @classmethod
    def from_csv(cls, path: str | Path, task: Triples = BUNDLED) -> Self:
        """Reads rows of from, line, to; a first row with just these words is a header.

        Raises ValueError with the file and the line, OSError.
        """
        rows = list(_csv_rows(Path(path)))
        if not rows:
            raise ValueError(f"{path}: no map; expected rows of from, line, to")
        _check(rows, task.line_channels)
        return cls.from_rows((row for _, row in rows), task)

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[str]], task: Triples = BUNDLED) -> Self:
        """From rows of three names; repeated rows count once."""
        triples = tuple(dict.fromkeys(tuple(row) for row in rows))
        return cls(triples, task)  # type: ignore[arg-type]  # their lengths are checked

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
        """What tells the model this map: inputs [n, I], I being 45 as bundled."""
        triples = [
            (self.number(source), self.lines.index(line), self.number(target)) for source, line, target in self.triples
        ]
        batch = self.task.tell(torch.tensor(triples).unsqueeze(1))
        inputs: npt.NDArray[np.float32] = batch.inputs[:, 0].numpy()
        return inputs

    def encode_journey(self, start: str, lines: Sequence[str]) -> npt.NDArray[np.float32]:
        """What asks the model where a journey leads, station by station: inputs [hops, I]."""
        if not lines:
            raise ValueError("the journey takes no line; expected at least one")
        for line in lines:
            if line not in self.lines:
                raise ValueError(f"line is {line!r}; expected one of {', '.join(self.lines)}")
        taken = torch.tensor([[self.lines.index(line)] for line in lines])
        journey = Journey(torch.tensor([self.number(start)]), taken, torch.zeros_like(taken))
        batch = self.task.travel(journey)
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


def _check(rows: Iterable[tuple[str, Sequence[str]]], most_lines: int) -> None:
    """Raises ValueError with the place of the first row that no map has."""
    ways: dict[tuple[str, str], str] = {}
    lines: set[str] = set()
    for place, row in rows:
        if len(row) != len(HEADER) or not all(row):
            raise ValueError(f"{place}: {', '.join(row)!r}; expected from, line, to")
        source, line, target = row
        lines.add(line)
        if len(lines) > most_lines:
            raise ValueError(f"{place}: {line!r} is one line more; the model takes at most {most_lines}")
        if ways.setdefault((source, line), target) != target:
            raise ValueError(f"{place}: {line} leads from {source} to {target}, and to {ways[source, line]} before")


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows that have something in them, without a header, each with its place."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        first = True
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                header = first and tuple(cell.lower() for cell in cells) == HEADER
                if any(cells):
                    first = False
                    if not header:
                        yield f"{path}:{reader.line_num}", cells
        except csv.Error as exc:
            raise ValueError(f"{path}:{reader.line_num}: {exc}; expected from, line, to") from exc
        except UnicodeDecodeError as exc:
            raise ValueError(f"{path}: not UTF-8 text, {exc.reason}") from exc
