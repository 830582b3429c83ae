"""What the programs of this folder are asked, and what they print and write."""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

DOCUMENT = "performance.md"
IMAGES = "images"

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
        if self.at_most is None and self.at_least is None:
            return ""
        return f"≤ {number(self.at_most)}" if self.at_most is not None else f"≥ {number(self.at_least or 0)}"

    @property
    def verdict(self) -> str:
        above = self.at_least is None or self.value >= self.at_least
        return "" if above and (self.at_most is None or self.value <= self.at_most) else "missed"


def parser_of(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with the flags that all programs have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help=f"write figures, plots and {DOCUMENT}'s part there")
    parser.add_argument("--serve", default="", metavar="FLAGS", help="flags of `dnc serve`, in one word")
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help="turns of everything (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="short and small: whether it runs")
    return parser


def median_of(turns: Sequence[Mapping[Any, Any]], figure: Callable[[Mapping[Any, Any]], float]) -> float:
    """The median over the rounds of something computed within each."""
    return statistics.median(figure(turn) for turn in turns)


def finish(name: str, arguments: argparse.Namespace, text: str, figures: Any, draw: Draw | None = None) -> None:
    """Prints the text, in Markdown; with `--docs`, puts it and its plots into the document and the figures beside it."""
    on = machine()
    software = ", ".join(f"{name} {on[name]}" for name in ("python", "torch", "grpcio", "dnc-serve"))
    text = f"{on['cores']} cores of {on['processor']}, {on['system']}; {software}.\n\n{text}"
    print(text)
    if arguments.docs is None:
        return
    images = arguments.docs / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    for file, shown in (draw(images) if draw is not None else {}).items():
        text += f"\n\n![{shown}]({IMAGES}/{file})"
    document = arguments.docs / DOCUMENT
    begin, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    before, found, rest = document.read_text().partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"{document} has no section between {begin} and {end}")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
    report = {"machine": on, "serve": arguments.serve, "figures": figures}
    (arguments.docs / f"performance-{name}.json").write_text(json.dumps(report, indent=1, default=asdict) + "\n")


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


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Numbers to the right, the first column to the left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_ratios(ratios: Sequence[Ratio]) -> str:
    """Ratios beside what they should be."""
    rows = [[ratio.name, number(ratio.value), ratio.aim, ratio.verdict] for ratio in ratios]
    return markdown_table(["", "measured", "aim", ""], rows)
