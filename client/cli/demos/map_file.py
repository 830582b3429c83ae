"""A map in a CSV file; whatever is wrong with it is said with the file and the line."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dnc_serve.client.cli.demos import DemoFailed
from dnc_serve.model.tasks.graph import BUNDLED
from dnc_serve.model.tasks.station_map import HEADER, StationMap


class BadMap(DemoFailed):
    """The file holds no map that the model can be told."""


class _Row(NamedTuple):
    at: str  # file:line
    cells: list[str]


def read_map(path: Path) -> StationMap:
    """Rows of from, line, to, of which the first may be just these words. Raises BadMap, OSError."""
    ways: dict[tuple[str, str], str] = {}
    lines: set[str] = set()
    for at, cells in _rows(path):
        if len(cells) != len(HEADER) or not all(cells):
            raise BadMap(f"{at}: {', '.join(cells)!r}; expected from, line, to")
        source, line, target = cells
        lines.add(line)
        if len(lines) > BUNDLED.lines:
            raise BadMap(f"{at}: {line!r} is one line more; the model takes at most {BUNDLED.lines}")
        if ways.setdefault((source, line), target) != target:
            raise BadMap(f"{at}: {line} leads from {source} to {target}, and to {ways[source, line]} before")
        if len(ways) > BUNDLED.max_triples:
            raise BadMap(f"{at}: triple {len(ways)}; the model takes at most {BUNDLED.max_triples}")
    if not ways:
        raise BadMap(f"{path}: no map; expected rows of from, line, to")
    return StationMap(tuple((source, line, target) for (source, line), target in ways.items()))


def write_map(station_map: StationMap, path: Path) -> None:
    """Writes what `read_map` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *station_map.triples])


def _rows(path: Path) -> Iterator[_Row]:
    """The rows that have something in them, without a header."""
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
                        yield _Row(f"{path}:{reader.line_num}", cells)
        except csv.Error as exc:
            raise BadMap(f"{path}:{reader.line_num}: {exc}; expected from, line, to") from exc
        except UnicodeDecodeError as exc:
            raise BadMap(f"{path}: not UTF-8 text, {exc.reason}") from exc
