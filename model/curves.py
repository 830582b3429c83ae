"""The losses of several runs in one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dnc_serve.model.runs import Plan, read_metrics


def plot_losses(folders: Sequence[str | Path], picture: str | Path, smoothed_over: int = 100) -> None:
    """Writes a picture of each run's loss and share of wrong units by iteration, as means over some iterations.

    Needs matplotlib. Raises FileNotFoundError or ValueError for a folder without a run.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for folder in folders:
        plan, rows = Plan.read(folder), read_metrics(folder)
        if not rows:
            raise ValueError(f"{folder} has no iteration yet; expected a run that was trained")
        window = min(smoothed_over, len(rows))
        label = f"{plan.recipe.optimizer}, learning rate {plan.recipe.lr:g} ({Path(folder).name})"
        iterations = np.array([row["iteration"] for row in rows])[window - 1 :]
        for axes, values in (
            (above, [row["loss"] for row in rows]),
            (below, [100 * row["wrong"] / max(row["units"], 1) for row in rows]),
        ):
            axes.plot(iterations, np.convolve(values, np.full(window, 1 / window), "valid"), label=label, linewidth=1)
    above.set(ylabel="loss", yscale="log")
    below.set(ylabel=f"{plan.task.unit} wrong, %", xlabel=f"iteration (means over {smoothed_over})")
    above.legend()
    figure.savefig(picture, dpi=100)
