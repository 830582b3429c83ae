"""A DNC's memory as heatmaps: in a Visdom server, for TensorBoard or MLflow, or as PNG files; and curves."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from dnc_serve.model.dnc import DNC
from dnc_serve.model.sequences import debug_table
from dnc_serve.model.state import Memory

Heatmap = npt.NDArray[np.float32]
COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float32)
VISDOM_HINT = (
    "visdom isn't installed. Its package builds with an older setuptools only: "
    'pip install "setuptools<80" && pip install --no-build-isolation "visdom==0.2.4", then start its server with '
    "python -m visdom.server"
)


class Gallery(ABC):
    """A place where heatmaps are shown; close it, or use it as a context."""

    def begin(self, name: str, parameters: Mapping[str, Any]) -> None:  # noqa: B027  most have no place for it
        """A training of this name begins, or goes on, with these parameters."""

    @abstractmethod
    def show(self, iteration: int, heatmaps: Mapping[str, Heatmap]) -> None:
        """Shows all heatmaps of one iteration, by the names of the debug table."""

    def plot(self, iteration: int, scalars: Mapping[str, float]) -> None:  # noqa: B027  most have no curves
        """Goes on with the curves of these names."""

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Lets go of files and connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class VisdomGallery(Gallery):
    """Windows of a running Visdom server, one for each heatmap, kept up to date.

    Raises ModuleNotFoundError with a hint if visdom is missing, and ConnectionError if no server answers.
    """

    def __init__(self, server: str = "http://localhost", port: int = 8097, environment: str = "main") -> None:
        try:
            import visdom
        except ModuleNotFoundError as exc:
            raise ModuleNotFoundError(VISDOM_HINT) from exc
        try:
            # Nothing is read back from the server, so no socket is held open for it.
            self._visdom: Any = visdom.Visdom(
                server=server, port=port, env=environment, use_incoming_socket=False, raise_exceptions=True
            )
        except ConnectionError as exc:
            hint = "start one with python -m visdom.server"
            raise ConnectionError(f"no Visdom server answers at {server}:{port}; {hint}") from exc

    def show(self, iteration: int, heatmaps: Mapping[str, Heatmap]) -> None:
        for name, values in heatmaps.items():
            options = {
                "title": f"{name}, iteration {iteration}",
                "xlabel": "slots and values",
                "ylabel": "layer * time",
            }
            self._visdom.heatmap(values, win=name, opts=options)

    def close(self) -> None:
        self._visdom.session.close()


class TensorBoardGallery(Gallery):
    """Curves and images in an event file that `tensorboard --logdir` shows, and follows while it grows."""

    def __init__(self, folder: str | Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A writer makes its files at once, and a training that doesn't begin is to leave none.
        self._new_writer = partial(SummaryWriter, str(folder), flush_secs=10)
        self._writer: Any = None

    def show(self, iteration: int, heatmaps: Mapping[str, Heatmap]) -> None:
        writer = self._open(iteration)
        for name, values in heatmaps.items():
            writer.add_image(f"memory/{name}", coloured(values), iteration, dataformats="HWC")
        writer.flush()

    def plot(self, iteration: int, scalars: Mapping[str, float]) -> None:
        writer = self._open(iteration)
        for name, value in scalars.items():
            writer.add_scalar(f"training/{name}", value, iteration)

    def _open(self, iteration: int) -> Any:
        # What a training wrote that was resumed from an earlier iteration is not shown twice.
        self._writer = self._writer or self._new_writer(purge_step=iteration)
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class MlflowGallery(Gallery):
    """Parameters, curves and images as a run of MLflow, where its own variables say: MLFLOW_TRACKING_URI and others.

    With MLFLOW_RUN_ID it goes on with that run. Raises ModuleNotFoundError with a hint if mlflow is missing, and
    ConnectionError if the run can't be kept.
    """

    MOST_KEPT = 1000  # values; a server would rather have a few large batches

    def __init__(self) -> None:
        try:
            import mlflow
        except ModuleNotFoundError as exc:
            raise ModuleNotFoundError("mlflow isn't installed; pip install 'dnc-serve[mlflow]'") from exc
        self._mlflow: Any = mlflow
        self._run_id = ""
        self._kept: list[Any] = []

    def begin(self, name: str, parameters: Mapping[str, Any]) -> None:
        with self._failures():
            self._run_id = self._mlflow.start_run(run_name=name).info.run_id
            self._mlflow.log_params(parameters)

    def plot(self, iteration: int, scalars: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._kept += [self._mlflow.entities.Metric(name, value, now, iteration) for name, value in scalars.items()]
        if len(self._kept) >= self.MOST_KEPT:
            self._send()

    def show(self, iteration: int, heatmaps: Mapping[str, Heatmap]) -> None:
        with self._failures():
            for name, values in heatmaps.items():
                self._mlflow.log_image(enlarged(coloured(values)), f"memory/{iteration:07d}-{name}.png")
        self._send()

    def close(self) -> None:
        if self._run_id:
            self._send()
            self._mlflow.end_run()

    def _send(self) -> None:
        with self._failures():
            while self._kept:
                self._mlflow.MlflowClient().log_batch(self._run_id, metrics=self._kept[: self.MOST_KEPT])
                del self._kept[: self.MOST_KEPT]

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except self._mlflow.exceptions.MlflowException as exc:
            raise ConnectionError(f"MLflow at {self._mlflow.get_tracking_uri()}: {exc}") from exc


class PngGallery(Gallery):
    """A PNG file for each heatmap and iteration."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def show(self, iteration: int, heatmaps: Mapping[str, Heatmap]) -> None:
        from PIL import Image

        self._folder.mkdir(parents=True, exist_ok=True)
        for name, values in heatmaps.items():
            Image.fromarray(enlarged(coloured(values))).save(self._folder / f"{iteration:07d}-{name}.png")


@torch.no_grad()
def heatmaps(model: DNC, inputs: torch.Tensor) -> dict[str, Heatmap]:
    """The debug table of a run over the first sequence of inputs [T, B, I], from zeros: a row for each access."""
    state = model.initial_state(1)
    accesses: list[Memory] = []
    for x in inputs[:, :1].unbind(0):
        _, state = model.step_observed(x, state, True, accesses)
    return debug_table(accesses)


def coloured(values: Heatmap) -> npt.NDArray[np.uint8]:
    """Values [rows, columns] as pixels [rows, columns, 3], dark blue at the smallest, yellow at the largest."""
    lowest, highest = float(values.min()), float(values.max())
    share = (values - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(values)
    stops = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(share, stops, COLOURS[:, channel]) for channel in range(3)], -1).astype(np.uint8)


def enlarged(pixels: npt.NDArray[np.uint8], side: int = 400) -> npt.NDArray[np.uint8]:
    """Pixels repeated, in each direction on its own, until both sides have at least `side`."""
    rows, columns = (max(1, -(-side // length)) for length in pixels.shape[:2])
    return pixels.repeat(rows, 0).repeat(columns, 1)
