"""The row kernel: each row by itself, so rows need no company, no padding and no probes of their bits."""

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.engine.model_runner import ModelRunner, Stepped, fingerprint_of
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.model.artifact import Artifact
from dnc_serve.model.kernel import RowKernel

logger = logging.getLogger(__name__)

# A batch's states should lie in the processor's second cache.
BATCH_BYTES = 2 << 20
MAX_ROWS = 64
TIMED_TICKS = 16


class KernelRunner:
    """A `ModelRunner`."""

    kind = "row-kernel"
    note: str = ""
    lets_others_run = True
    row_counts: tuple[int, ...] = ()

    def __init__(self, artifact: Artifact, kernel: RowKernel) -> None:
        self.device = torch.device("cpu")
        self._artifact, self._kernel = artifact, kernel
        self.layout = artifact.layout
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.fingerprint = fingerprint_of(self.kind, artifact, kernel.identity)
        self.max_rows = max(1, min(MAX_ROWS, BATCH_BYTES // (4 * self.layout.size)))
        self._row_s = self._time_a_row()
        self._torchscript: TileRunner | None = None

    def of_fingerprint(self, fingerprint: str) -> ModelRunner:
        """TorchScript's tiles if they computed what has this fingerprint; they are made when they are first asked for,
        in a second or so, after a server has changed to the kernel."""
        if fingerprint in ("", self.fingerprint):
            return self
        if self._torchscript is None:
            logger.info("a session was last stepped by other code; TorchScript is made ready to replay it")
            self._torchscript = TileRunner(self._artifact, "cpu")
        return self._torchscript if self._torchscript.fingerprint == fingerprint else self

    def debug(self, inputs: Array, state: Float32) -> dict[str, Array]:
        return self._artifact.debug(inputs, state, rows=1)

    def seconds(self, rows: int) -> float:
        return rows * self._row_s

    def step(self, rows: StateRows, sources: Sequence[int], targets: Sequence[int], inputs: Sequence[Array]) -> Stepped:
        assert rows.array is not None
        places_by_ticks: dict[int, list[int]] = {}
        for place, each in enumerate(inputs):
            places_by_ticks.setdefault(len(each), []).append(place)
        if len(places_by_ticks) == 1:
            return self._step(rows.array, sources, targets, inputs)
        outputs: list[Array] = [inputs[0]] * len(inputs)
        finite = [True] * len(inputs)
        for places in places_by_ticks.values():
            stepped = self._step(
                rows.array,
                [sources[place] for place in places],
                [targets[place] for place in places],
                [inputs[place] for place in places],
            )
            for place, output, is_finite in zip(places, *stepped, strict=True):
                outputs[place], finite[place] = output, is_finite
        return outputs, finite

    def _step(
        self, states: Float32, sources: Sequence[int], targets: Sequence[int], inputs: Sequence[Array]
    ) -> Stepped:
        """All of them for as many ticks."""
        together = np.concatenate(inputs).reshape(len(inputs), len(inputs[0]), self.inputs.size)
        outputs, finite = self._kernel.step(states, sources, targets, together.transpose(1, 0, 2))
        by_row = np.ascontiguousarray(outputs.transpose(1, 0, 2))
        if not np.isfinite(by_row.sum()):  # a sum is finite only if all its terms are
            finite = [ok and bool(np.isfinite(output).all()) for ok, output in zip(finite, by_row, strict=True)]
        return [output.copy() for output in by_row], finite  # else one that is kept would keep all of them

    def _time_a_row(self) -> float:
        """Seconds of a tick of one row, among others."""
        rows = StateRows(self.max_rows, self.layout, self.device)
        numbers = list(range(self.max_rows))
        inputs = [np.zeros((TIMED_TICKS, self.inputs.size), np.float32)] * self.max_rows
        best = float("inf")
        for _ in range(5):
            start = time.thread_time()  # on a busy machine the wall clock would count what others do
            self.step(rows, numbers, numbers, inputs)
            best = min(best, time.thread_time() - start)
        return max(best / TIMED_TICKS / self.max_rows, 1e-7)
