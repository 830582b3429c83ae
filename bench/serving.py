"""`dnc bench`, written into the documentation, and a model of the size that the `dnc` package's README has.

python -m bench.serving [--docs docs] [--code auto] [--quick]
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench import readme_size
from bench.report import finish, parser_of
from dnc_serve.client.cli.bench import measure, table
from dnc_serve.client.cli.measure.aside import aside
from dnc_serve.client.cli.measure.lockstep import Span
from dnc_serve.client.cli.measure.rounds import ratio_lines


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    rounds, seconds = (1, 0.2) if arguments.quick else (5, 0.6)
    report = measure("copy", ("--durability", "async"), arguments.code, rounds, seconds, lambda line: None)
    # A chunk of all its sessions takes half a second: the span has to hold many of them.
    rounds, span = (1, Span(1.0, 0.5)) if arguments.quick else (3, Span(6.0, 1.5))
    with aside() as load, aside() as alone:
        large = readme_size.measure(load, alone, arguments.code, rounds, span)
    text = f"```\n{table(report)}\n\n{_of_readme_size(large)}\n```"
    report["code"] = arguments.code
    report["readme_size"] = {
        **large,
        "rows": {label: asdict(figures) for label, figures in large["rows"].items()},
        "ratios": [ratio.as_dict() for ratio in large["ratios"]],
    }
    finish("serving", report, text, arguments.docs)


def _of_readme_size(found: Mapping[str, Any]) -> str:
    sizes = readme_size.SIZES
    lines = [
        f"a model of README size, {sizes['input_size']}/{sizes['hidden_size']}, {sizes['num_layers']} layers, "
        f"{sizes['nr_cells']} cells of {sizes['cell_size']}; {found['artifact']}",
        f"bare unroll of the largest tile, {readme_size.CHUNK} ticks a call: "
        f"{found['bare_timesteps_per_s']:,.0f} timesteps/s",
        "",
    ]
    for label, row in found["rows"].items():
        lines.append(f"{label:<56} {row.p50_ms:8.2f} {row.p99_ms:8.2f} {row.timesteps_per_s:12,.0f}")
    return "\n".join([*lines, "", *ratio_lines(found["ratios"])])


if __name__ == "__main__":
    main()
