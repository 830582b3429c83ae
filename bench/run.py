"""One run of a program: what it is asked, who puts load on the servers, and what it prints and writes."""

import argparse
import json
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from bench.servers import MODEL, Served, served
from dnc_serve.client.cli.bench import told
from dnc_serve.client.cli.load import Figures, Load, Server, Span, in_turns, stream_load

DOCUMENT, IMAGES = "performance.md", "images"

Result = TypeVar("Result")
Draw = Callable[[Path], Mapping[str, str]]  # draws plots into a folder; what each shows, by the names of their files


@dataclass(frozen=True)
class Ratio:
    """A figure, best one that holds on any machine, and what it should be."""

    name: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def aim(self) -> str:
        return f"≤ {number(self.at_most)}" if self.at_most is not None else f"≥ {number(self.at_least or 0)}"

    @property
    def verdict(self) -> str:
        below = self.at_least is not None and self.value < self.at_least
        return "missed" if below or (self.at_most is not None and self.value > self.at_most) else ""


@contextmanager
def aside() -> "Iterator[Aside]":
    """A fresh process, which ends with the block."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield Aside(executor)


class Aside:
    """A process that does one thing after the other, and shares no interpreter with what it measures."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def run(self, work: Callable[..., Result], *args: Any) -> Result:
        """What `work` returns there; raises what it raises."""
        return self.start(work, *args).result()

    def start(self, work: Callable[..., Result], *args: Any) -> "Future[Result]":
        """The same, not waited for."""
        return self._executor.submit(work, *args)


class Run(ExitStack):
    """Ends all that was started in it with its block."""

    def __init__(
        self, name: str, description: str | None, rounds: int = 5, seconds: float = 1.0, **flags: dict[str, Any]
    ) -> None:
        super().__init__()
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--docs", type=Path, metavar="FOLDER", help=f"write {DOCUMENT}'s part there, and figures")
        parser.add_argument("--serve", default="", metavar="FLAGS", help="of `dnc serve`: --serve='--durability sync'")
        parser.add_argument("--rounds", type=int, default=rounds, help="turns of everything (%(default)s)")
        parser.add_argument("--seconds", type=float, default=seconds, help="of each load in a round (%(default)s)")
        parser.add_argument("--quick", action="store_true", help="short and small: whether it runs")
        for flag, options in flags.items():
            parser.add_argument(f"--{flag}", **options)
        self.name = name
        self.asked = parser.parse_args()
        self.quick: bool = self.asked.quick
        self.rounds: int = 1 if self.quick else self.asked.rounds
        self.seconds: float = 0.2 if self.quick else self.asked.seconds
        self.ratios: list[Ratio] = []
        self.load = self.aside()

    def aside(self) -> Aside:
        """A fresh process."""
        return self.enter_context(aside())

    def served(self, *flags: str, model: str = MODEL, **how: Any) -> AbstractContextManager[Served]:
        """A server, with the flags that all were asked to have."""
        return served(model, *flags, *shlex.split(self.asked.serve), **how)

    def stream(self, server: Server, load: Load, prefix: str = "s", seconds: float = 0.0) -> Callable[[], Figures]:
        """The load to be put on a server, when it is called."""
        span = Span(seconds or self.seconds, 0.3 * (seconds or self.seconds))
        return partial(self.load.run, stream_load, server, load, span, prefix)

    def turns(self, measures: Mapping[Any, Callable[[], Any]], rounds: int = 0) -> "list[dict[Any, Any]]":
        """What each measurement gave, by round."""
        turns = in_turns(measures, rounds or self.rounds, told)
        told("")
        return turns

    def ratio(self, name: str, values: Sequence[float], **aim: float) -> None:
        """Judges the median over the rounds of something computed within each."""
        self.ratios.append(Ratio(name, median(values), **aim))

    def finish(self, text: str, figures: Any, draw: Draw | None = None) -> None:
        """Prints the text, in Markdown; with `--docs`, puts it and plots into the document, and figures beside it."""
        on = machine()
        software = ", ".join(f"{name} {on[name]}" for name in ("python", "torch", "grpcio", "dnc-serve"))
        text = f"{on['cores']} cores of {on['processor']}, {on['system']}; {software}.\n\n{text}"
        print(text)
        docs: Path | None = self.asked.docs
        if docs is None:
            return
        (docs / IMAGES).mkdir(exist_ok=True)
        for file, shown in (draw(docs / IMAGES) if draw is not None else {}).items():
            text += f"\n\n![{shown}]({IMAGES}/{file})"
        write_section(docs / DOCUMENT, self.name, text)
        report = {"machine": on, "serve": self.asked.serve, "ratios": self.ratios, "figures": figures}
        (docs / f"performance-{self.name}.json").write_text(json.dumps(report, indent=1, default=asdict) + "\n")


def write_section(document: Path, name: str, text: str) -> None:
    """Puts text between the two marks of a section; raises ValueError if the document has none."""
    begin, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    before, found, rest = document.read_text().partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"{document} has no section between {begin} and {end}")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "processor": next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "grpcio", "dnc-serve")},
    }


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; numbers to the right, the first column to the left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratio_table(ratios: Sequence[Ratio]) -> str:
    """Ratios beside what they should be."""
    rows = [[ratio.name, number(ratio.value), ratio.aim, ratio.verdict] for ratio in ratios]
    return table(["", "measured", "aim", ""], rows)
