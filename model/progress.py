"""How a training goes, for people who watch, and for logs."""

import sys
import time
from collections import deque

from tqdm import tqdm

from dnc_serve.model.train import Progress, Training, wrong_share

SMOOTHED_OVER = 50
LINE_EVERY_S = 10.0


class ProgressBar:
    """Loss, wrong units and speed over the last iterations, on standard error.

    A bar on a terminal; else, as under nohup or in CI, a line every some seconds.
    """

    def __init__(self, training: Training, unit: str) -> None:
        self._name, self._unit, self._iterations = training.task.name, unit, training.recipe.iterations
        self._line_at = time.monotonic() + LINE_EVERY_S
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
        if not self._bar.disable:
            self._bar.set_postfix_str(self._figures(), refresh=False)
            self._bar.update()
        elif time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + LINE_EVERY_S
            say(f"{self._name}: iteration {progress.iteration} of {self._iterations}, {self._figures()}")

    def _figures(self) -> str:
        recent = self._recent
        loss = sum(item.loss for item in recent) / len(recent)
        speed = sum(item.timesteps for item in recent) / sum(item.seconds for item in recent)
        return f"loss {loss:.4f}, {self._unit} wrong {wrong_share(recent):.2%}, {speed:.0f} timesteps/s"

    def write(self, line: str) -> None:
        """A line on standard output, without tearing the bar."""
        tqdm.write(line, file=sys.stdout)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()


def say(line: str) -> None:
    """A word on standard error, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
