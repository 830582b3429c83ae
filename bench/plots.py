"""The plots of the comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

MANY, CHUNK = 64, 16


def draw_comparison(report: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Timesteps a second along the three axes; what each plot shows, by its file."""
    alive = [row for row in report["servers"] if not row.get("failed")]
    by_cells: dict[str, list[tuple[int, float]]] = {}
    for row in report["by_memory_slots"]:
        for name, rate in row["timesteps_per_s"].items():
            by_cells.setdefault(name, []).append((row["nr_cells"], rate))
    axes = {
        f"sessions-{chunk}": (_lines([row for row in alive if row["chunk"] == chunk], "sessions"), label)
        for chunk, label in ((1, "sessions, chunks of 1"), (CHUNK, f"sessions, chunks of {CHUNK}"))
    }
    many = [row for row in alive if row["sessions"] == MANY]
    axes["chunk"] = (_lines(many, "chunk"), f"timesteps of a chunk, {MANY} sessions")
    axes["memory-slots"] = (by_cells, f"memory slots of the model, {MANY} sessions, chunks of {CHUNK}")
    plots = {}
    for name, (lines, label) in axes.items():
        file = f"performance-{name}.svg"
        _draw(lines, label, folder / file)
        plots[file] = f"Timesteps a second by {label}"
    return plots


def _lines(rows: list[Mapping[str, Any]], along: str) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(rows, key=lambda row: row[along]):
        lines.setdefault(row["system"], []).append((row[along], row["timesteps_per_s"]))
    return lines


def _draw(lines: Mapping[str, list[tuple[int, float]]], label: str, file: Path) -> None:
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes: Axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
    axes.set_xlabel(label)
    axes.set_ylabel("timesteps a second")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})
