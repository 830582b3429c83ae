"""The graph demo: one process tells a session a map with names, another one asks where journeys on it lead."""

import argparse
import csv
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from dnc_serve.client.arrays import Array
from dnc_serve.client.cli.demos import DemoFailed
from dnc_serve.client.cli.demos.layout import save_picture, table
from dnc_serve.client.cli.demos.server import Steps, by_slot, in_another_process, serving, step_each
from dnc_serve.client.cli.files import expecting, made_folder
from dnc_serve.client.cli.parser import path
from dnc_serve.client.client import Client, Session
from dnc_serve.client.errors import ModelMismatch, SessionError

if TYPE_CHECKING:
    from dnc_serve.model.tasks.station_map import StationMap

HELP = "a map with names, told by one process and asked by another, now or days later"
DETAILS = """\
A map is a CSV file of from,line,to: at most 20 rows, with at most 3 lines, each of which leaves a station at most once.

  dnc demo graph                             an example, told and asked at once
  dnc demo graph --map map.csv               tells the map to a session, and ends
  dnc demo graph --ask "Mill: red, blue"     asks that session, from another process: a minute or days later

In between no process is left: the second command starts a server anew on the same state folder, and the session is
still there, for a week. With --target both commands use a server that runs already, `dnc serve --model graph`. The
state folder also keeps the map itself, for its names and for the plain look-up that the answers are shown beside. Each
question is asked of a fork, so that the session stays as it was told."""

EXAMPLE = Path(__file__).with_name("example_map.csv")
EXAMPLE_QUESTIONS = ("Harbour: red, blue, blue, blue", "Tower: green, green, red, blue", "Airport: blue, red")

Connection = dict[str, Any]
"""What a `Client` is made with."""


@dataclass(frozen=True)
class Options:
    """What can be asked for."""

    map: Path | None = None
    ask: tuple[str, ...] = ()
    target: Connection | None = None
    state_dir: Path | None = None
    plot: Path | None = None
    model: str = "graph"
    runtime: str = "torchserve"

    def __post_init__(self) -> None:
        if self.plot is not None and self.map is not None and not self.ask:
            raise ValueError("--plot shows what questions read; expected --ask too")


class Question(NamedTuple):
    """Where a journey starts, and the lines that it takes."""

    start: str
    lines: list[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "Mill: red, blue"."""
        start, colon, rest = text.rpartition(":")
        lines = [line.strip() for line in rest.split(",")]
        if not colon or not all(lines):
            raise ValueError(f'--ask is {text!r}; expected "STATION: LINE, LINE, …"')
        return cls(start.strip(), lines)


@dataclass(frozen=True)
class Answers:
    """What came of the questions."""

    pid: int
    steps: list[Steps]  # one for each question
    written: Array | None  # [facts, N], where each fact was written; None if the journal no longer reaches back


def configure(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--map", type=path, metavar="FILE", help="CSV of from,line,to to tell")
    group.add_argument("--ask", action="append", metavar="JOURNEY", help='"STATION: LINE, LINE, …"; may be repeated')
    group.add_argument(
        "--state-dir",
        type=path,
        metavar="FOLDER",
        help="the map and the server's state (dnc-demo in $XDG_STATE_HOME, ~/.local/state)",
    )


def run(options: Options) -> int:
    """Exit code 0 if every station is right. Raises ValueError for a wrong journey, DemoFailed, OSError."""
    try:
        with _state_folder(options) as folder:
            return _tell_and_ask(options, folder)
    except (SessionError, ModelMismatch) as exc:
        raise DemoFailed(f"{exc}; tell the map again with --map FILE") from exc


def _tell_and_ask(options: Options, folder: Path) -> int:
    kept = folder / "map.csv"
    is_example = options.map is None and not options.ask
    told_now = EXAMPLE if is_example else options.map
    if told_now is None and not kept.exists():
        raise DemoFailed(f"no map was told yet ({kept} is missing); tell one with --map FILE")
    station_map = read_map(told_now or kept)
    questions = [Question.parse(text) for text in (EXAMPLE_QUESTIONS if is_example else options.ask)]
    asked = [station_map.encode_journey(*question) for question in questions]
    with _server(options, folder) as server:
        session_id = _session_id(station_map)
        facts = station_map.encode()
        if told_now is not None:
            pid = in_another_process(tell, server, session_id, facts)
            write_map(station_map, kept)
            print(f"process {pid} told session {session_id!r} {len(facts)} triples and left", file=sys.stderr)
        if not asked:
            return 0
        answers = in_another_process(ask, server, session_id, len(facts), asked)
        print(f"process {answers.pid} came back and asked\n", file=sys.stderr)
    right = _show(station_map, questions, answers)
    if options.plot is not None:
        _save_picture(options.plot, station_map, questions, answers)
    return 0 if right else 1


@contextmanager
def _state_folder(options: Options) -> Iterator[Path]:
    """Where the map and the server's state are kept: for the example, a folder that vanishes."""
    if options.map is None and not options.ask:
        with TemporaryDirectory(prefix="dnc-demo-") as scratch:
            yield Path(scratch)
        return
    from dnc_serve.handler.config import default_state_dir

    folder = options.state_dir or default_state_dir().with_name("dnc-demo")
    with made_folder(folder):
        yield folder


@contextmanager
def _server(options: Options, folder: Path) -> Iterator[Connection]:
    """The given server, or one that goes on with the state in the folder."""
    if options.target is not None:
        yield options.target
    else:
        with serving(options.model, options.runtime, folder / "state") as address:
            yield {"targets": [address]}


def _session_id(station_map: "StationMap") -> str:
    """The same for the same map, so that telling it again changes nothing."""
    return f"demo-map-{hashlib.sha256(repr(station_map.triples).encode()).hexdigest()[:8]}"


def _show(station_map: "StationMap", questions: list[Question], answers: Answers) -> bool:
    """Prints each journey beside the plain look-up; whether they agree."""
    hops = wrong = 0
    head = ["take", "answered", "look-up"]
    if answers.written is not None:
        head += ["read from slot", "where this was written"]
    for question, steps in zip(questions, answers.steps, strict=True):
        rows = []
        answered, truth = station_map.decode(steps.outputs), station_map.walk(*question)
        for hop, (line, answer) in enumerate(zip(question.lines, answered, strict=True)):
            known = hop < len(truth)
            hops += known
            wrong += known and answer != truth[hop]
            row = [line, answer, truth[hop] if known else "(no such way)"]
            if answers.written is not None:
                slot = int(steps.read[hop].argmax())
                row += [str(slot), " ".join(station_map.triples[int(answers.written[:, slot].argmax())])]
            rows.append(row)
        print(f"from {question.start}")
        print(table(head, rows), end="\n\n")
    print(f"wrong stations: {wrong} of {hops}")
    return wrong == 0


def _save_picture(path: Path, station_map: "StationMap", questions: list[Question], answers: Answers) -> None:
    if answers.written is None:
        raise DemoFailed("the journal no longer reaches back to the telling; tell the map again with --map FILE")
    asked = [
        f"{line} → {answer}" if hop else f"{question.start} {line} → {answer}"
        for question, steps in zip(questions, answers.steps, strict=True)
        for hop, (line, answer) in enumerate(zip(question.lines, station_map.decode(steps.outputs), strict=True))
    ]
    read = np.concatenate([steps.read for steps in answers.steps])
    facts = [" ".join(triple) for triple in station_map.triples]
    save_picture(path, f"A map of {len(facts)} triples told, and asked", answers.written, facts, read, asked)


# The map in a file.


def read_map(path: Path) -> "StationMap":
    """A map that the model has room for. Raises DemoFailed, OSError."""
    from dnc_serve.model.tasks.graph import BUNDLED
    from dnc_serve.model.tasks.station_map import StationMap

    try:
        with expecting(path, "a CSV file of from,line,to"):
            station_map = StationMap.from_csv(path)
    except ValueError as exc:
        raise DemoFailed(str(exc)) from exc
    if len(station_map.triples) > BUNDLED.max_triples:
        raise DemoFailed(f"{path}: {len(station_map.triples)} triples; the model takes at most {BUNDLED.max_triples}")
    return station_map


def write_map(station_map: "StationMap", path: Path) -> None:
    """Writes what `read_map` reads."""
    from dnc_serve.model.tasks.station_map import HEADER

    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *station_map.triples])


# The session that is told it once, and only ever asked through forks; each of the two runs in a process of its own.


def tell(server: Connection, session_id: str, facts: Array) -> int:
    """Tells what the session hasn't been told yet: all, nothing, or the rest after an interruption. Returns the pid.

    Raises DemoFailed for a session that something else was done with, and for another model.
    """
    with Client(**server) as client:
        model = client.model()
        if model.input_size != facts.shape[1]:
            raise DemoFailed(
                f"{', '.join(server['targets'])} serves {model.name!r}, which is no graph model; "
                "see dnc serve --model graph"
            )
        with client.session(session_id) as session:
            _check(session, range(len(facts) + 1))
            if session.position < len(facts):
                session.step(facts[session.position :])
    return os.getpid()


def ask(server: Connection, session_id: str, facts: int, questions: Sequence[Array]) -> Answers:
    """Asks each question of a fork of the session, which is deleted afterwards. Raises DemoFailed."""
    answered = []
    with Client(**server) as client, client.session(session_id, create=False) as session:
        _check(session, range(facts, facts + 1))
        for question in questions:
            with session.fork() as fork:
                answered.append(step_each(fork, question))
                fork.delete()
        return Answers(os.getpid(), answered, _where_written(session, facts))


def _check(session: Session, positions: range) -> None:
    if session.position not in positions or session.experience:
        raise DemoFailed(
            f"session {session.id!r} was used for something else too: it is at position {session.position}, after "
            f"{session.experience} resets; expected position {positions[-1]}, and none"
        )


def _where_written(session: Session, facts: int) -> Array | None:
    """The write weighting after each fact, looked up at that earlier position."""
    info = session.info()
    if info.earliest_position > 1:
        return None
    slots = session.dump(["usage_vector"])["usage_vector"].shape[-1]
    written = (session.dump(["write_weights"], position)["write_weights"] for position in range(1, facts + 1))
    return np.stack([by_slot(weights, slots) for weights in written])
