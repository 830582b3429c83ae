"""The plots of the comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

MANY, CHUNK = 64, 16


def draw_comparison(report: Mapping[str, Any], folder: Path) -> None:
    """Timesteps a second along the three axes, as `performance-*.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    alive = [row for row in report["servers"] if not row.get("died")]
    for chunk in (1, CHUNK):
        rows = [row for row in alive if row["chunk"] == chunk]
        _draw(_lines(rows, "sessions"), f"sessions, chunks of {chunk}", folder / f"performance-sessions-{chunk}.svg")
    rows = [row for row in alive if row["sessions"] == MANY]
    _draw(_lines(rows, "chunk"), f"timesteps of a chunk, {MANY} sessions", folder / "performance-chunk.svg")
    by_cells: dict[str, list[tuple[int, float]]] = {}
    for row in report["by_memory_slots"]:
        for name, rate in row["timesteps_per_s"].items():
            by_cells.setdefault(name, []).append((row["nr_cells"], rate))
    label = f"memory slots of the model, {MANY} sessions, chunks of {CHUNK}"
    _draw(by_cells, label, folder / "performance-memory-slots.svg")


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
