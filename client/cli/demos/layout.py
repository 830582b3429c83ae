"""How demos lay out what they found, in the terminal and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnc_serve.client.arrays import Array
from dnc_serve.client.cli.files import replacing
from dnc_serve.client.plotting import MAP_OF_SHARES, side_by_side, terminal_picture, used_slots


def bits(vector: NDArray[Any]) -> str:
    """A vector of zeros and ones as a word of blocks and dots."""
    return "".join("█" if bit else "·" for bit in vector)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lines of cells below each other, each column as wide as it has to be."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def weightings(written: Array, read: Array) -> str:
    """Weightings [T, N] beside each other, in the slots that any of the two used."""
    slots = used_slots(written, read)
    return side_by_side(
        terminal_picture("slot  written, over time", written, slots),
        terminal_picture("slot  read, over time", read, slots),
    )


def save_picture(
    path: Path, title: str, written: Array, facts: Sequence[str], read: Array, questions: Sequence[str]
) -> None:
    """Draws where each fact was written [facts, N], and beside it, slot by slot, what each question read
    [questions, N], as a .png or .svg. Raises ImportError with a hint without matplotlib, ValueError for other names.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ImportError("plots need matplotlib: pip install 'dnc-serve[plot]'") from exc
    slots = used_slots(written, read)
    # A cell is about as wide as it is high; the names stand upright below.
    figure = Figure(figsize=(2.0 + 0.24 * (len(facts) + len(questions)), 2.6 + 0.2 * len(slots)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = (("written when told", written, facts), ("read when asked", read, questions))
    columns = figure.subplots(1, 2, sharey=True, width_ratios=(len(facts), len(questions)))
    for axes, (label, shares, names) in zip(columns, panels, strict=True):
        image = axes.imshow(shares[:, slots].T, cmap=MAP_OF_SHARES, vmin=0, vmax=1, aspect="auto")
        axes.set_title(label, fontsize=9, loc="left")
        axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=7, family="monospace")
        axes.set_yticks(np.arange(len(slots)), slots, fontsize=7)
    columns[0].set_ylabel("slot", fontsize=8)
    bar = figure.colorbar(image, ax=columns[1])
    bar.set_label("share of the weighting", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120)
