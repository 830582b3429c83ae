"""How a training goes, for people who watch."""

import sys
from collections import deque

from tqdm import tqdm

from dnc_serve.model.train import Progress, Training

SMOOTHED_OVER = 50


class ProgressBar:
    """A bar on a terminal's standard error: loss, wrong units and speed, over the last iterations; else nothing."""

    def __init__(self, training: Training, unit: str) -> None:
        self._unit = unit
        self._recent: deque[Progress] = deque(maxlen=SMOOTHED_OVER)
        self._bar = tqdm(
            total=training.recipe.iterations,
            initial=training.iteration,
            desc=training.task.name,
            unit="it",
            dynamic_ncols=True,
            disable=None,  # unless standard error is a terminal
        )

    def show(self, progress: Progress) -> None:
        """Adds an iteration."""
        self._recent.append(progress)
        if self._bar.disable:
            return
        recent = self._recent
        loss = sum(item.loss for item in recent) / len(recent)
        wrong = sum(item.wrong for item in recent) / sum(item.units for item in recent)
        speed = sum(item.timesteps for item in recent) / sum(item.seconds for item in recent)
        self._bar.set_postfix_str(
            f"loss {loss:.4f}, {self._unit} wrong {wrong:.2%}, {speed:.0f} timesteps/s", refresh=False
        )
        self._bar.update()

    def write(self, line: str) -> None:
        """A line on standard output, without tearing the bar."""
        tqdm.write(line, file=sys.stdout)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()


def say(line: str) -> None:
    """A word on standard error."""
    sys.stderr.write(f"{line}\n")
