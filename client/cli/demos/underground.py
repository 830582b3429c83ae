"""The underground demo: told the map of London once; after a restart, another process asks where routes on it lead."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from dnc_serve.client.arrays import Array
from dnc_serve.client.cli.demos import DemoFailed
from dnc_serve.client.cli.demos.graph import Question
from dnc_serve.client.cli.demos.layout import table
from dnc_serve.client.cli.demos.server import SESSION, in_another_process, serving
from dnc_serve.client.client import Client

if TYPE_CHECKING:
    from dnc_serve.model.tasks.station_map import StationMap

HELP = "the map of London's Underground, told once; after a restart another process asks for routes, which are drawn"
MAP = Path(__file__).with_name("underground.csv")
ROUTES = (
    "Paddington: Bakerloo east, Bakerloo east, Victoria south, Victoria south",
    "Victoria: Circle east, Jubilee east, Bakerloo west, Northern north",
    "Liverpool Street: Central south, Northern north, Circle west, Circle west, Circle west",
)
# Where each station is drawn, by column and line, from north to south.
PLACES = {
    "King's Cross St. Pancras": (38, 0),
    "Euston Square": (32, 2),
    "Great Portland Street": (28, 3),
    "Baker Street": (21, 4),
    "Edgware Road": (14, 5),
    "Farringdon": (48, 5),
    "Barbican": (52, 5),
    "Moorgate": (57, 6),
    "Liverpool Street": (60, 6),
    "Paddington": (11, 8),
    "Oxford Circus": (29, 8),
    "Bank": (57, 9),
    "Notting Hill Gate": (0, 10),
    "Embankment": (39, 11),
    "Green Park": (28, 12),
    "Waterloo": (43, 13),
    "Westminster": (37, 15),
    "Victoria": (27, 17),
    "Gloucester Road": (7, 18),
    "South Kensington": (12, 18),
}


@dataclass(frozen=True)
class Options:
    """What can be asked for."""

    ask: tuple[str, ...] = ROUTES
    model: str = "traversal"
    runtime: str = "torchserve"


def configure(group: argparse._ArgumentGroup) -> None:
    group.description = (
        f'--ask "{ROUTES[0]}" for a route of your own: a station, then lines with the direction taken; one that does '
        "not exist is told with those that do"
    )


def run(options: Options) -> int:
    """Exit code 0 if every station is right. Raises ValueError for a wrong route, DemoFailed, OSError."""
    from dnc_serve.model.tasks.station_map import StationMap
    from dnc_serve.model.tasks.traversal import Traversal

    station_map = StationMap.from_csv(MAP, Traversal())
    routes = [Question.parse(text) for text in options.ask]
    asked = [station_map.encode_journey(*_checked(station_map, route)) for route in routes]
    facts = station_map.encode()
    with tempfile.TemporaryDirectory(prefix="dnc-demo-") as folder:
        state_dir = Path(folder) / "state"
        with serving(options.model, options.runtime, state_dir) as address:
            pid = in_another_process(tell, address, facts)
        print(f"process {pid} told session {SESSION!r} {len(facts)} triples of {len(PLACES)} stations and left;")
        with serving(options.model, options.runtime, state_dir) as address:
            pid, outputs = in_another_process(ask, address, asked)
        print(f"the server was stopped and started again; process {pid} came and asked\n")
    wrong = hops = 0
    for route, output in zip(routes, outputs, strict=True):
        answered, truth = station_map.decode(output), station_map.walk(*route)
        wrong += sum(one != other for one, other in zip(answered, truth, strict=True))
        hops += len(truth)
        print(f"from {route.start}")
        print(table(("take", "answered", "look-up"), list(zip(route.lines, answered, truth, strict=True))))
        print(f"\n{drawn([route.start, *answered])}\n")
    print(f"wrong stations: {wrong} of {hops}")
    return 0 if wrong == 0 else 1


def _checked(station_map: "StationMap", route: Question) -> Question:
    """The route, if there is one. Raises ValueError with the lines that leave where it ends."""
    station_map.number(route.start)
    reached = [route.start, *station_map.walk(*route)]
    if len(reached) <= len(route.lines):
        lines = [line for source, line, _ in station_map.triples if source == reached[-1]]
        taken = route.lines[len(reached) - 1]
        raise ValueError(f"line is {taken!r}; expected one that leaves {reached[-1]}: {', '.join(lines)}")
    return route


def tell(address: str, facts: Array) -> int:
    """Tells the session the map, in a process of its own, whose pid it returns. Raises DemoFailed for another model."""
    with Client(address) as client, client.session(SESSION) as session:
        if (size := client.model().input_size) != facts.shape[1]:
            raise DemoFailed(
                f"the model takes inputs of {size}; expected {facts.shape[1]}, as one trained on traversal"
            )
        session.step(facts)
    return os.getpid()


def ask(address: str, routes: Sequence[Array]) -> tuple[int, list[Array]]:
    """Asks each route of a fork of the session, so that none hears of another; the pid and the answers."""
    answers = []
    with Client(address) as client, client.session(SESSION, create=False) as session:
        for route in routes:
            with session.fork() as fork:
                answers.append(fork.step(route))
                fork.delete()
    return os.getpid(), answers


def drawn(route: Sequence[str]) -> str:
    """The map in the terminal: every station, and the route's by name and in the order in which it comes to them.

    An answer that is no station of the map is left out.
    """
    width = max(column for column, _ in PLACES.values()) + 3
    canvas = [[" "] * width for _ in range(1 + max(line for _, line in PLACES.values()))]
    known = [(number, PLACES[station], station) for number, station in enumerate(route) if station in PLACES]
    for (_, start, _), (_, end, _) in pairwise(known):
        steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
        for step in range(steps + 1):
            column, line = (round(a + (b - a) * step / steps) for a, b in zip(start, end, strict=True))
            canvas[line][column] = "·"
    for column, line in PLACES.values():
        canvas[line][column] = "○"
    passed: dict[tuple[int, int], str] = {}
    for number, place, _ in known:
        passed[place] = f"{passed[place]},{number}" if place in passed else str(number)
    for (column, line), numbers in passed.items():
        canvas[line][column] = "●"
        canvas[line].append(f"   {numbers} {next(name for name, at in PLACES.items() if at == (column, line))}")
    return "\n".join("".join(cells).rstrip() for cells in canvas)
