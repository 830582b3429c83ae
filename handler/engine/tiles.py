"""The model's code, stepped in tiles: a few fixed numbers of rows whose bits agree.

A row's result must not depend on its company. Kernels are chosen by shape, so a matrix product over 1 row and one over
64 rows may round differently; over the sizes used here they don't, and each server proves that for its own artifact
and processor before it serves.

TorchScript is the code that runs anywhere: on GPUs, and where the row kernel can't be had; see `model_runner.py`.
"""

import hashlib
import json
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from dnc_serve.model.export import Artifact
from dnc_serve.model.processor import processor

CANDIDATES = (1, 2, 4, 8, 12, 16, 32, 64)
PROBE_TIMESTEPS = 9
# The states of a tile take so much at most, or it has one row. A tick needs a few times as much beside them, and out of
# a processor's cache each row costs several times more; a GPU has none that would hold them anyway.
MAX_TILE_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
# By these factors a row may cost hardly more, and far more, in one tile than in another.
HARDLY_MORE = 1.1
FAR_MORE = 1.4
# What a company costs beside the model, for each of its ticks, if it has sixteen.
COMPANY_SECONDS = 20e-6
# TorchScript's executor may change its code after the first calls.
WARM_UP_CALLS = 3


class Tiles:
    """Runs rows of packed state through the model.

    Shapes: inputs [T, rows, I], states [rows, S] as `StateLayout` packs them, outputs [T, rows, O].
    """

    kind = "torchscript"

    def __init__(self, artifact: Artifact, device: str, candidates: Sequence[int] = CANDIDATES, note: str = "") -> None:
        torch.set_num_threads(1)  # spinning threads cost more than they bring, and the count must not change
        torch.set_flush_denormal(True)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.device = torch.device(device)
        self.layout = artifact.layout
        self.input_size = artifact.config.input_size
        self.output_size = artifact.config.outputs
        self.module = artifact.module.to(self.device)
        self.note = note  # why it is not the row kernel
        self.sizes = self._agreeing(sorted(self._affordable(candidates)))
        self.largest = self.sizes[-1]
        self._tick_seconds = {size: self._time_a_tick(size) for size in self.sizes}
        self.worthwhile = self._worthwhile()
        self.fingerprint = self._fingerprint(artifact)

    def _fingerprint(self, artifact: Artifact) -> str:
        """What the promise of equal bits holds for: artifact, torch and kind of processor, as 16 hexadecimal digits."""
        described = [self.kind, artifact.digest, torch.__version__, processor(self.device), self.largest, ""]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]

    def fit(self, rows: int) -> int:
        """The smallest tile that holds so many rows."""
        return next(size for size in self.sizes if size >= rows)

    def seconds(self, rows: int, ticks: int = 1) -> float:
        """How long so many rows take for so many ticks, as measured at the start."""
        return self._tick_seconds[self.fit(rows)] * ticks

    def run(self, inputs: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Steps a tile through T timesteps: outputs [T, rows, O] and the states after the last."""
        with torch.inference_mode():
            outputs, states = self.module(inputs, states)
        return outputs, states

    def debug(self, inputs: Tensor, states: Tensor) -> dict[str, Tensor]:
        """What each layer's access left in memory, [T, L, rows, …] under the seed's six names."""
        with torch.inference_mode():
            _, _, arrays = self.module.trace_debug(inputs, states)
        return dict(arrays)

    def _affordable(self, candidates: Sequence[int]) -> Sequence[int]:
        """Large states are stepped in smaller tiles."""
        return [rows for rows in candidates if rows * self.layout.size * 4 <= MAX_TILE_BYTES[self.device.type]] or (1,)

    def _agreeing(self, candidates: list[int]) -> tuple[int, ...]:
        """The candidates under which a probe row has the same bits as under the largest, wherever it stands.

        And whether its timesteps are stepped in one call, or each in a call of its own.
        """
        largest = candidates[-1]
        probe_inputs = self._probe_inputs(largest)
        for size in candidates:
            for _ in range(WARM_UP_CALLS):
                self._probe(probe_inputs[:, :size])
        reference = self._probe(probe_inputs, at_once=1)
        agreeing = tuple(size for size in candidates if self._agrees(size, probe_inputs, reference))
        return agreeing or (largest,)

    def _probe_inputs(self, rows: int) -> Tensor:
        """Random bits as ±1; those of a row don't depend on the number of rows."""
        generator = torch.Generator().manual_seed(20161027)
        return torch.randn(rows, PROBE_TIMESTEPS, self.input_size, generator=generator).sign().transpose(0, 1)

    def _agrees(self, size: int, probe_inputs: Tensor, reference: tuple[Tensor, Tensor]) -> bool:
        rows = probe_inputs.size(1)
        # Rows move to other places and among other neighbours in each round.
        for shift in (0, 1, 3, rows - size):
            chosen = [(row * 5 + shift) % rows for row in range(size)]
            outputs, states = self._probe(probe_inputs[:, chosen])
            if not torch.equal(outputs, reference[0][:, chosen]) or not torch.equal(states, reference[1][chosen]):
                return False
        return True

    def _probe(self, inputs: Tensor, at_once: int = PROBE_TIMESTEPS) -> tuple[Tensor, Tensor]:
        """Outputs and last states of a tile's inputs from zero states, so many timesteps a call."""
        states = torch.zeros(inputs.size(1), self.layout.size, device=self.device)
        outputs: list[Tensor] = []
        for some in torch.split(inputs.contiguous().to(self.device), at_once):
            output, states = self.run(some, states)
            outputs.append(output.cpu())
        return torch.cat(outputs), states.cpu()

    def _worthwhile(self) -> int:
        """The tile of which two are under way at once, so that the loop serves one while the other is stepped.

        At most half as large as the largest, unless a row costs far more there; and the smallest of the tiles in which
        a row costs about the same.
        """
        of_a_row = {size: (self._tick_seconds[size] + COMPANY_SECONDS) / size for size in self.sizes}
        best = min(of_a_row.values())
        halves = {size: cost for size, cost in of_a_row.items() if 2 * size <= self.largest and cost <= FAR_MORE * best}
        chosen = halves or of_a_row
        return min(size for size, cost in chosen.items() if cost <= HARDLY_MORE * min(chosen.values()))

    def _time_a_tick(self, size: int) -> float:
        inputs = torch.zeros(PROBE_TIMESTEPS, size, self.input_size, device=self.device)
        states = torch.zeros(size, self.layout.size, device=self.device)
        # On a busy machine the wall clock would count what others do; on a device it is all that there is.
        clock = time.thread_time if self.device.type == "cpu" else time.perf_counter
        best = float("inf")
        for _ in range(5):
            start = clock()
            outputs, _ = self.run(inputs, states)
            outputs.cpu()
            best = min(best, clock() - start)
        return best / PROBE_TIMESTEPS
