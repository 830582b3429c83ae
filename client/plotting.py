"""Pictures of a memory: heatmaps in a file, weightings over time in one or in a terminal, and a recording in motion."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnc_serve.client.axes import AXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Array = NDArray[np.float32]

# Both can be read with any kind of colour vision, and in print.
MAP_OF_SHARES = "cividis"  # from 0 to 1
MAP_OF_VALUES = "PuOr"  # around 0
SHARES = (
    "link_matrix", "precedence", "read_weights", "write_weights", "usage_vector", "weightings", "allocation_gates",
    "write_gates", "free_gates", "read_modes", "sparse_read_weights", "sparse_precedence", "sparse_links",
)  # fmt: skip
# What lies along the last axis, and along the one before it.
_ALONG = {
    "N": "slot", "W": "position in the word", "R": "read head", "K": "write head", "M": "backward, forward, by content",
    "D": "hidden layer", "H": "unit", "V": "number read", "S": "slot that is read",
    "Q": "link",
}  # fmt: skip
LABELS = {name: (_ALONG[axes[-1]], _ALONG[axes[-2]] if len(axes) > 1 else "") for name, axes in AXES.items()}
LABELS |= {"link_matrix": ("from slot", "to slot"), "weightings": ("timestep", "slot")}
SHADES = " ░▒▓█"
# A slot is shown in a terminal if it ever got this share of a weighting.
LEAST_SHARE = 0.1
# Fields of a state that an animation shows, below each other.
MOST_ANIMATED = 6
WIDTH_INCHES = 7.0
# A panel of few rows is no higher than so many inches a row; it is named as a whole, and its scale has two ends.
ROW_INCHES = 0.6
LOW_INCHES = 1.2
SCALE_INCHES = 0.12
MOST_NUMBERED = 8


def save_heatmaps(arrays: Mapping[str, Array], path: Path, title: str) -> None:
    """Writes a dump's arrays as heatmaps to a .png or .svg. Raises ImportError with a hint without matplotlib."""
    figure = heatmaps(arrays, title)
    figure.savefig(path, dpi=120)


def heatmaps(arrays: Mapping[str, Array], title: str) -> "Figure":
    """One heatmap for each array; of a DNC with several memories or layers, for each of them."""
    panels: list[tuple[str, str, Array]] = []
    for name, array in arrays.items():
        parts = array if name in AXES and array.ndim > len(AXES[name]) else array[None]
        panels.extend(
            (f"{name} {row}" if len(parts) > 1 else name, name, panel_of(part)) for row, part in enumerate(parts)
        )
    heights = [_height(panel) for _, _, panel in panels]
    figure = _new_figure(sum(heights) + 0.8)
    figure.suptitle(title)
    rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (label, name, panel) in zip(rows, panels, strict=True):
        _draw(axes, label, name, panel)
    return figure


def save_weightings(weightings: Mapping[str, Array], path: Path, title: str) -> None:
    """Writes weightings [T, N] by name, below each other over time, to a .png or .svg."""
    figure = _new_figure(1.9 * len(weightings) + 0.5)
    figure.suptitle(title, fontsize=10)
    rows = figure.subplots(len(weightings), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, weighting) in zip(rows, weightings.items(), strict=True):
        _draw(axes, name, "weightings", weighting.T)
    figure.savefig(path, dpi=120)


def save_animation(
    recording: Mapping[str, Array],
    path: Path,
    titles: Sequence[str],
    frames_per_second: int,
) -> None:
    """Writes a recording, whose arrays are [T, parts, *shape], as a .gif with a frame for each timestep.

    Of a DNC each frame shows the last memory and its links, and the weightings until then, heads below each other; of
    another model the fields of its state. Raises ImportError with a hint without matplotlib.
    """
    figure = _new_figure(7.0)
    from matplotlib.animation import PillowWriter

    if "link_matrix" in recording:
        layout: list[Any] = [["memory", "link_matrix"], ["write_weights"] * 2, ["read_weights"] * 2]
        panels = figure.subplot_mosaic(layout, height_ratios=[3, 1, 1])
    else:
        panels = figure.subplot_mosaic([[name] for name in list(recording)[:MOST_ANIMATED]])
    largest = {name: float(np.abs(recording[name]).max(initial=0.0)) or 1.0 for name in panels}
    writer = PillowWriter(fps=frames_per_second)
    with writer.saving(figure, str(path), dpi=90):
        for timestep, title in enumerate(titles):
            figure.suptitle(title, fontsize=10)
            for name, axes in panels.items():
                axes.clear()
                axes.set_title(name, fontsize=9, loc="left")
                last = recording[name][:, -1]
                if name in ("write_weights", "read_weights"):
                    past, shares = np.arange(len(last)) <= timestep, last.reshape(len(last), -1)
                    _paint(axes, "weightings", np.where(past[:, None], shares, np.nan).T, 1.0)
                else:
                    _paint(axes, name, panel_of(last[timestep]), largest[name])
            writer.grab_frame()


def panel_of(array: Array) -> Array:
    """An array as rows and columns; three axes, as the write heads' link matrices, are pictures side by side."""
    values = array.astype(np.float32)
    if array.ndim == 3:
        return np.concatenate(list(values), axis=1)
    return values.reshape(-1, array.shape[-1] if array.ndim else 1)


def terminal_picture(title: str, weightings: Array, slots: list[int] | None = None) -> list[str]:
    """Weightings [T, N] as lines of text: a column for each timestep, a row for each slot that is used (or is given),
    darker for a larger share."""
    shown = used_slots(weightings) if slots is None else slots
    lines = [title.ljust(len(weightings) + 5)]
    for slot in shown:
        shades = (SHADES[round(float(share) * (len(SHADES) - 1))] for share in np.clip(weightings[:, slot], 0.0, 1.0))
        lines.append(f"{slot:>3} │{''.join(shades)}")
    lines.append("    └" + "─" * len(weightings))
    return lines


def used_slots(*weightings: Array) -> list[int]:
    """The slots that ever got a noticeable share in any of these weightings [T, N]."""
    used = np.any([np.any(each >= LEAST_SHARE, axis=0) for each in weightings], axis=0)
    return [int(slot) for slot in np.flatnonzero(used)]


def side_by_side(*pictures: list[str]) -> str:
    """Pictures of equal height beside each other."""
    widths = [max(map(len, picture)) for picture in pictures]
    return "\n".join(
        "   ".join(line.ljust(width) for line, width in zip(lines, widths, strict=True)).rstrip()
        for lines in zip(*pictures, strict=True)
    )


def _height(panel: Array) -> float:
    """Inches for a panel of that many rows, so that a cell is about as high as it is wide, within reason."""
    rows, columns = panel.shape
    return float(np.clip(min(WIDTH_INCHES * rows / columns, ROW_INCHES * rows), 0.7, 4.0))


def _new_figure(height_inches: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ImportError("plots need matplotlib: pip install 'dnc-serve[plot]'") from exc
    return Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")


def _draw(axes: "Axes", label: str, name: str, panel: Array) -> None:
    image = _paint(axes, name, panel, float(np.abs(panel).max()) or 1.0)
    axes.set_title(label, fontsize=9, loc="left")
    assert axes.figure is not None
    height = _height(panel)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01, aspect=max(2.0, 0.9 * height / SCALE_INCHES))
    bar.ax.tick_params(labelsize=7)
    if height < LOW_INCHES:
        low, high = image.get_clim()
        bar.set_ticks([low, high], labels=[f"{end:.3g}" for end in (low, high)])


def _paint(axes: "Axes", name: str, panel: Array, largest: float) -> "AxesImage":
    """A panel with labelled axes: shares from 0 to 1, other values around 0 up to the largest."""
    colours, low, high = (MAP_OF_SHARES, 0.0, 1.0) if name in SHARES else (MAP_OF_VALUES, -largest, largest)
    image = axes.imshow(panel, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    x, y = LABELS.get(name, ("", ""))
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.locator_params(integer=True)
    for count, set_ticks in ((panel.shape[0], axes.set_yticks), (panel.shape[1], axes.set_xticks)):
        if count <= MOST_NUMBERED:  # else there would be fractions; a sole row has nothing to count
            set_ticks(range(count) if count > 1 else [])
    return image
