"""The compiled model, stepped in tiles: a few fixed numbers of rows whose bits agree.

A row's result must not depend on its company. Kernels are chosen by shape, so a matrix product over 1 row and one over
64 rows may round differently; over the sizes used here they don't, and each server proves that for its own artifact
and processor before it serves.
"""

import hashlib
import json
import platform
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from dnc_serve.model.export import Artifact

CANDIDATES = (8, 12, 16, 32, 64)
PROBE_TIMESTEPS = 6
# TorchScript's executor may change its code after the first calls.
WARM_UP_CALLS = 3


class Tiles:
    """Runs rows of packed state through the model.

    Shapes: inputs [T, rows, I], states [rows, S] as `StateLayout` packs them, outputs [T, rows, O].
    """

    kind = "torchscript"
    note = ""

    def __init__(self, artifact: Artifact, device: str, candidates: Sequence[int] = CANDIDATES) -> None:
        torch.set_num_threads(1)  # spinning threads cost more than they bring, and the count must not change
        torch.set_flush_denormal(True)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.device = torch.device(device)
        self.layout = artifact.layout
        self.input_size = artifact.config.input_size
        self.output_size = artifact.config.outputs
        self.module = artifact.module.to(self.device)
        self.sizes = self._agreeing(sorted(candidates))
        self.largest = self.sizes[-1]
        self.tick_seconds = self._time_a_tick()
        self.fingerprint = self._fingerprint(artifact)

    def _fingerprint(self, artifact: Artifact) -> str:
        """What the promise of equal bits holds for: artifact, torch and kind of processor, as 16 hexadecimal digits."""
        if self.device.type == "cuda":
            processor = torch.cuda.get_device_name(self.device)
        else:
            processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        described = json.dumps([self.kind, artifact.digest, torch.__version__, processor, self.largest])
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def fit(self, rows: int) -> int:
        """The smallest tile that holds so many rows."""
        return next(size for size in self.sizes if size >= rows)

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

    def _agreeing(self, candidates: list[int]) -> tuple[int, ...]:
        """The candidates under which a probe row has the same bits as under the largest, wherever it stands."""
        largest = candidates[-1]
        generator = torch.Generator().manual_seed(20161027)
        probe_inputs = torch.randn(PROBE_TIMESTEPS, largest, self.input_size, generator=generator).sign()
        for size in candidates:
            for _ in range(WARM_UP_CALLS):
                self._probe(probe_inputs[:, :size])
        reference = self._probe(probe_inputs)
        return tuple(size for size in candidates if self._agrees(size, probe_inputs, reference)) or (largest,)

    def _agrees(self, size: int, probe_inputs: Tensor, reference: tuple[Tensor, Tensor]) -> bool:
        rows = probe_inputs.shape[1]
        # Rows move to other places and among other neighbours in each round.
        for shift in (0, 1, 3, rows - size):
            chosen = [(row * 5 + shift) % rows for row in range(size)]
            outputs, states = self._probe(probe_inputs[:, chosen])
            if not torch.equal(outputs, reference[0][:, chosen]) or not torch.equal(states, reference[1][chosen]):
                return False
        return True

    def _probe(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        states = torch.zeros(inputs.shape[1], self.layout.size)
        outputs, states = self.run(inputs.contiguous().to(self.device), states.to(self.device))
        return outputs.cpu(), states.cpu()

    def _time_a_tick(self) -> float:
        inputs = torch.zeros(PROBE_TIMESTEPS, self.largest, self.input_size, device=self.device)
        states = torch.zeros(self.largest, self.layout.size, device=self.device)
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            outputs, _ = self.run(inputs, states)
            outputs.cpu()
            best = min(best, time.perf_counter() - start)
        return best / PROBE_TIMESTEPS
