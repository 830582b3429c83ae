"""What the programs of this folder print and write."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnc_serve.client.cli.measure.rounds import Ratio, described, ratio_lines


def write_report(report: Mapping[str, Any], file: Path | None) -> None:
    """Prints the machine and the ratios, and writes all of it to the file if there is one."""
    ratios = [Ratio(one["name"], one["value"], one["at_most"], one["at_least"]) for one in report["ratios"]]
    print("\n".join([described(report["machine"]), "", *ratio_lines(ratios)]))
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n")
