"""Any model, by TorchScript or by its exported program, in tiles: a few fixed numbers of rows whose bits agree.

Kernels are chosen by shape, so a matrix product over 1 row and one over 64 rows may round differently; over the sizes
used here they don't, and each server proves that for its own artifact and processor before it serves.
"""

import hashlib
import json
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.engine.model_runner import ModelRunner, Stepped, fingerprint_of
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.model.artifact import Artifact, DNCArtifact
from dnc_serve.model.numerics import numeric_environment, processor
from dnc_serve.model.rows import TensorSpec

CANDIDATES = (1, 2, 4, 8, 12, 16, 32, 64)
# So many ticks tell whether one call of many gives the bits of many calls of one.
PROBE_TIMESTEPS = 9
# The states of a tile take so much at most, or it has one row. A tick needs a few times as much beside them, and out of
# a processor's cache each row costs several times more; a GPU has none that would hold them anyway.
MAX_TILE_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
# TorchScript's executor may change its code after the first calls.
WARM_UP_CALLS = 3


class TileRunner:
    """A `ModelRunner`. A tile is inputs [T, rows, *shape] and states [rows, S]."""

    lets_others_run = True

    def __init__(self, artifact: Artifact, device: str, candidates: Sequence[int] = CANDIDATES, note: str = "") -> None:
        torch.set_num_threads(1)  # spinning threads cost more than they bring, and the count must not change
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.device = torch.device(device)
        self.layout = artifact.layout
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.kind = "torchscript" if isinstance(artifact, DNCArtifact) else "program"
        self.note = note  # why it is not the row kernel
        self._artifact = artifact
        candidates = candidates if artifact.rows is None else (artifact.rows,)
        affordable = sorted(self._affordable(candidates))
        self.row_counts = self._agreeing(affordable)
        if len(self.row_counts) < min(2, len(affordable)):
            alone = f"rows are stepped {self.row_counts[0]} at a time: their bits depend on how many there are"
            self.note = "; ".join(filter(None, (note, alone)))
        self.max_rows = self.row_counts[-1]
        self._tick_seconds = {size: self._time_a_tick(size) for size in self.row_counts}
        self.fingerprint = fingerprint_of(
            self.kind, artifact, torch.__version__, processor(self.device), str(self.max_rows),
            json.dumps(numeric_environment()), self._probed,
        )  # fmt: skip

    def of_fingerprint(self, fingerprint: str) -> ModelRunner:
        return self

    def seconds(self, rows: int) -> float:
        return self._tick_seconds[self._fit(rows)]

    def step(self, rows: StateRows, sources: Sequence[int], targets: Sequence[int], inputs: Sequence[Array]) -> Stepped:
        # Those with the most ticks first, so that what is still to be stepped stands at the front of the tile.
        order = sorted(range(len(inputs)), key=lambda place: -len(inputs[place]))
        outputs = [np.empty((len(each), *self.outputs.shape), self.outputs.numpy) for each in inputs]
        states = rows.gather([sources[i] for i in order], self._fit(len(order)))
        done, active, finite = 0, len(order), [True] * len(order)
        while active:
            ticks = len(inputs[order[active - 1]]) - done
            tile = np.zeros((ticks, self._fit(active), *self.inputs.shape), self.inputs.numpy)
            for place, i in enumerate(order[:active]):
                tile[:, place] = inputs[i][done : done + ticks]
            stepped, after = self.run(torch.from_numpy(tile).to(self.device), states[: tile.shape[1]])
            states[:active] = after[:active]
            output = stepped.cpu().numpy()
            all_finite = not self.outputs.is_floating or bool(np.isfinite(output.sum()))
            for place, i in enumerate(order[:active]):
                outputs[i][done : done + ticks] = output[:, place]
                finite[i] = finite[i] and (all_finite or bool(np.isfinite(output[:, place]).all()))
            done += ticks
            while active and len(inputs[order[active - 1]]) == done:
                active -= 1
        rows.scatter([targets[i] for i in order], states)
        for i, is_finite in zip(order, self.layout.finite(states[: len(order)]), strict=True):
            finite[i] = finite[i] and is_finite
        return outputs, finite

    def run(self, inputs: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Steps a tile through T timesteps: outputs [T, rows, *shape] and the states after the last."""
        torch.set_flush_denormal(True)  # of this thread: whichever steps, the bits are the same
        with torch.inference_mode():
            outputs, states = self._artifact.tick(inputs, states)
        return outputs, states

    def debug(self, inputs: Array, state: Float32) -> dict[str, Array]:
        torch.set_flush_denormal(True)  # as in `run`
        return self._artifact.debug(inputs, state, self.row_counts[0])

    def _fit(self, rows: int) -> int:
        """The smallest tile that holds so many rows."""
        return next(size for size in self.row_counts if size >= rows)

    # What is proved at the start.

    def _affordable(self, candidates: Sequence[int]) -> Sequence[int]:
        """Large states are stepped in smaller tiles."""
        return [rows for rows in candidates if rows * self.layout.size * 4 <= MAX_TILE_BYTES[self.device.type]] or (1,)

    def _agreeing(self, candidates: list[int]) -> tuple[int, ...]:
        """The candidates under which a probe row has the same bits as under the largest, wherever it stands.

        And whether its timesteps are stepped in one call, or each in a call of its own. If the largest doesn't even
        agree with itself, each row is stepped alone.
        """
        largest = candidates[-1]
        probe_inputs = probe(largest, self.inputs)
        for size in candidates:
            for _ in range(WARM_UP_CALLS):
                self._from_zero(probe_inputs[:, :size])
        reference = self._from_zero(probe_inputs, at_once=1)
        self._probed = hashlib.sha256(b"".join(part.numpy().tobytes() for part in reference)).hexdigest()
        return tuple(size for size in candidates if self._agrees(size, probe_inputs, reference)) or (1,)

    def _agrees(self, size: int, probe_inputs: Tensor, reference: tuple[Tensor, Tensor]) -> bool:
        rows = probe_inputs.size(1)
        # Rows move to other places and among other neighbours in each round.
        for shift in (0, 1, 3, rows - size):
            chosen = [(row * 5 + shift) % rows for row in range(size)]
            outputs, states = self._from_zero(probe_inputs[:, chosen])
            if not torch.equal(_bits(outputs), _bits(reference[0][:, chosen])):
                return False
            if not torch.equal(_bits(states), _bits(reference[1][chosen])):
                return False
        return True

    def _from_zero(self, inputs: Tensor, at_once: int = PROBE_TIMESTEPS) -> tuple[Tensor, Tensor]:
        """Outputs and last states of a tile's inputs from new states, so many timesteps a call."""
        states = self._new(inputs.size(1))
        outputs: list[Tensor] = []
        for some in torch.split(inputs.contiguous().to(self.device), at_once):
            output, states = self.run(some, states)
            outputs.append(output.cpu())
        return torch.cat(outputs), states.cpu()

    def _time_a_tick(self, size: int) -> float:
        inputs = torch.zeros(PROBE_TIMESTEPS, size, *self.inputs.shape, dtype=self.inputs.torch, device=self.device)
        states = self._new(size)
        # On a busy machine the wall clock would count what others do; on a device it is all that there is.
        clock = time.thread_time if self.device.type == "cpu" else time.perf_counter
        best = float("inf")
        for _ in range(5):
            start = clock()
            outputs, _ = self.run(inputs, states)
            outputs.cpu()
            best = min(best, clock() - start)
        return best / PROBE_TIMESTEPS

    def _new(self, rows: int) -> Tensor:
        return torch.from_numpy(np.tile(self.layout.initial, (rows, 1))).to(self.device)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def probe(rows: int, inputs: TensorSpec, timesteps: int = PROBE_TIMESTEPS) -> Tensor:
    """Random ±1 [T, rows, *shape], or 0 and 1 for integers; those of a row don't depend on the number of rows."""
    generator = torch.Generator().manual_seed(20161027)
    signs = torch.randn(rows, timesteps, *inputs.shape, generator=generator).sign().transpose(0, 1)
    return signs.to(inputs.torch) if inputs.is_floating else (signs > 0).to(inputs.torch)
