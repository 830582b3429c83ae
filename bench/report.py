"""What the programs of this folder are asked, and what they print and write."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnc_serve.client.cli.measure.rounds import Ratio, described

DOCUMENT = "performance.md"
IMAGES = "images"

Draw = Callable[[Path], Mapping[str, str]]  # draws plots into a folder; what each shows, by the names of their files


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags that all programs have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help=f"write figures, plots and {DOCUMENT}'s part there")
    parser.add_argument("--code", choices=("auto", "torchscript"), default="auto", help="what steps the model (auto)")
    parser.add_argument("--quick", action="store_true", help="short and small: whether it runs")
    return parser


def finish(name: str, report: Mapping[str, Any], text: str, docs: Path | None, draw: Draw | None = None) -> None:
    """Prints the text, in Markdown; with `docs`, puts it and its plots into the document and the report beside it."""
    code = "TorchScript" if report["code"] == "torchscript" else "the row kernel"
    text = f"{described(report['machine'])}; {code}\n\n{text}"
    print(text)
    if docs is not None:
        if draw is not None:
            (docs / IMAGES).mkdir(parents=True, exist_ok=True)
            plots = draw(docs / IMAGES)
            text += "".join(f"\n\n![{shown}]({IMAGES}/{file})" for file, shown in plots.items())
        (docs / f"performance-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        _write_section(docs / DOCUMENT, name, text)


def _write_section(document: Path, name: str, text: str) -> None:
    """Puts text between the two marks of a section; raises ValueError if the document has none."""
    begin, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    before, found, rest = document.read_text().partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"{document} has no section between {begin} and {end}")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Numbers to the right, the first column to the left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_ratios(ratios: Sequence[Ratio]) -> str:
    """Ratios beside what they should be."""
    rows = []
    for ratio in ratios:
        aim = f"≤ {ratio.at_most}" if ratio.at_most is not None else f"≥ {ratio.at_least}"
        rows.append([ratio.name, f"{ratio.value:.2f}", aim, "" if ratio.reached else "missed"])
    return markdown_table(["ratio", "measured", "aim", ""], rows)
