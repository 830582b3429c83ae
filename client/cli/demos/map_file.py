"""The graph demo's map in a CSV file."""

import csv
from pathlib import Path

from dnc_serve.client.cli.demos import DemoFailed
from dnc_serve.model.tasks.graph import BUNDLED
from dnc_serve.model.tasks.station_map import HEADER, StationMap


class BadMap(DemoFailed):
    """The file holds no map that the model can be told; the message says where."""


def read_map(path: Path) -> StationMap:
    """A map that the model has room for. Raises BadMap, OSError."""
    try:
        station_map = StationMap.from_csv(path)
    except ValueError as exc:
        raise BadMap(str(exc)) from exc
    if len(station_map.triples) > BUNDLED.max_triples:
        raise BadMap(f"{path}: {len(station_map.triples)} triples; the model takes at most {BUNDLED.max_triples}")
    return station_map


def write_map(station_map: StationMap, path: Path) -> None:
    """Writes what `read_map` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *station_map.triples])
