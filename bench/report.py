"""What the programs of this folder print and write."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnc_serve.client.cli.measure.rounds import Ratio, described, ratio_lines


def write_report(report: Mapping[str, Any], file: Path | None) -> None:
    """Prints the machine and the ratios, and writes all of it to the file if there is one."""
    print("\n".join([described(report["machine"]), "", *ratio_lines(_ratios(report["ratios"]))]))
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n")


def write_section(document: Path, name: str, text: str) -> None:
    """Puts text between the two marks of a section of a Markdown document; raises ValueError if it has none."""
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


def markdown_ratios(ratios: Sequence[Mapping[str, Any]]) -> str:
    """Ratios of a report beside what they should be."""
    rows = []
    for ratio in _ratios(ratios):
        aim = f"≤ {ratio.at_most}" if ratio.at_most is not None else f"≥ {ratio.at_least}"
        rows.append([ratio.name, f"{ratio.value:.2f}", aim, "" if ratio.reached else "missed"])
    return markdown_table(["ratio", "measured", "aim", ""], rows)


def _ratios(ratios: Sequence[Mapping[str, Any]]) -> list[Ratio]:
    return [Ratio(one["name"], one["value"], one["at_most"], one["at_least"]) for one in ratios]
