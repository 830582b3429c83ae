"""`RowKernel`: a model's weights and the code of its tick, to step rows of states with."""

import ctypes
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.kernel.code import ARGUMENTS, TickCode, identity
from dnc_serve.model.kernel.weights import BLOCK, pack_weights
from dnc_serve.model.layout import StateLayout

Array = np.ndarray[Any, np.dtype[Any]]

# Numbers of weights and links that a thread goes through in some hundred microseconds; less is not worth another.
WORTH_A_THREAD = 1 << 22


class RowKernel:
    """Steps rows; what a row gets depends on its state and inputs alone. May be called in several threads at once.

    With `threads`, rows of one call are shared between so many, if there are enough of them: with the same bits.
    """

    def __init__(
        self,
        config: DNCConfig,
        weights: Mapping[str, Tensor],
        code: TickCode,
        threads: int = 1,
        dtype: Any = np.float32,
    ) -> None:
        self.config, self.dtype = config, np.dtype(dtype)
        self.state_size = StateLayout(config).size
        self.input_size, self.output_size = config.input_size, config.outputs
        self.identity = identity()
        self._code, self._weights = code, pack_weights(config, weights, dtype)
        links = config.num_layers * config.write_heads * config.nr_cells**2
        self._work_of_a_row = self._weights.size + 4 * links
        self._threads = threads
        self._others = ThreadPoolExecutor(threads - 1, "dnc-rows") if threads > 1 else None
        self._idle: list[_Call] = []
        self._checked: Array | None = None

    def step(
        self, states: Array, sources: Sequence[int], targets: Sequence[int], inputs: Array
    ) -> tuple[Array, list[bool]]:
        """T timesteps of B rows: outputs [T, B, O], and which rows end in finite states.

        Reads the rows of `states` [., S] numbered `sources` and writes those numbered `targets`: for each the same row,
        or one that is in no other place of either. `inputs` are [T, B, I]. Raises ValueError for what doesn't fit.
        """
        ticks, rows, _ = inputs.shape
        self._check(states, sources, targets, inputs)
        parts = 1
        if self._others is not None:
            parts = max(1, min(self._threads, rows // BLOCK, rows * ticks * self._work_of_a_row // WORTH_A_THREAD))
        if parts == 1:
            return self._step(states, sources, targets, inputs)
        edges = [rows * part // parts // BLOCK * BLOCK for part in range(parts)] + [rows]
        pieces = [slice(*edge) for edge in pairwise(edges)]
        assert self._others is not None
        futures = [
            self._others.submit(self._step, states, sources[piece], targets[piece], inputs[:, piece])
            for piece in pieces[1:]
        ]
        own = self._step(states, sources[pieces[0]], targets[pieces[0]], inputs[:, pieces[0]])
        done = [own, *(future.result() for future in futures)]
        return np.concatenate([outputs for outputs, _ in done], 1), [each for _, finite in done for each in finite]

    def close(self) -> None:
        """Ends the threads."""
        if self._others is not None:
            self._others.shutdown()

    def _step(
        self, states: Array, sources: Sequence[int], targets: Sequence[int], inputs: Array
    ) -> tuple[Array, list[bool]]:
        try:
            call = self._idle.pop()
        except IndexError:
            call = _Call(self._code, self._weights, self.output_size)
        outputs = call(states, sources, targets, inputs)
        self._idle.append(call)
        return outputs

    def _check(self, states: Array, sources: Sequence[int], targets: Sequence[int], inputs: Array) -> None:
        if states is not self._checked:
            if states.dtype != self.dtype or states.ndim != 2 or states.shape[1] != self.state_size:
                raise ValueError(
                    f"states are {states.dtype} {list(states.shape)}; expected {self.dtype} [rows, {self.state_size}]"
                )
            if not states.flags.c_contiguous or not states.flags.writeable:
                raise ValueError("states can't be written, or their rows don't lie one behind the other")
            self._checked = states
        rows = len(sources)
        if len(targets) != rows or not rows:
            raise ValueError(f"there are {rows} sources and {len(targets)} targets; expected as many, at least one")
        if inputs.ndim != 3 or inputs.shape[1:] != (rows, self.input_size) or not len(inputs):
            raise ValueError(f"inputs are {list(inputs.shape)}; expected [T, {rows}, {self.input_size}], T at least 1")
        for row in (*sources, *targets):
            if not 0 <= row < len(states):
                raise ValueError(f"row {row} of the states is asked for; they have {len(states)}")


class _Call:
    """The arguments and scratch of one call at a time, kept for the next: addresses of arrays are dear to ask for."""

    def __init__(self, code: TickCode, weights: Array, output_size: int) -> None:
        self._call = code.call
        self._block = (ctypes.c_int64 * ARGUMENTS)()
        self._address = ctypes.addressof(self._block)
        self._dtype, self._output_size = weights.dtype, output_size
        integers = np.int32 if weights.dtype == np.float32 else np.int64
        self._kept = [weights, _aligned(code.scratch, weights.dtype), _aligned(code.integers, integers)]
        self._block[6], self._block[7], self._block[8] = (array.ctypes.data for array in self._kept)
        self._states: Array | None = None
        self._shape: tuple[int, ...] = ()

    def __call__(
        self, states: Array, sources: Sequence[int], targets: Sequence[int], inputs: Array
    ) -> tuple[Array, list[bool]]:
        if states is not self._states:
            self._states, self._block[0] = states, states.ctypes.data
        if inputs.shape != self._shape:
            self._make_room(inputs.shape)
        self._sources[:], self._targets[:], self._inputs[:] = list(sources), list(targets), inputs
        self._call(self._address)
        return self._outputs.copy(), self._finite[:]

    def _make_room(self, shape: tuple[int, ...]) -> None:
        ticks, rows, _ = self._shape = shape
        # Arrays of ctypes take and give short lists faster than numpy's.
        self._sources, self._targets = (ctypes.c_int64 * rows)(), (ctypes.c_int64 * rows)()
        self._finite = (ctypes.c_bool * rows)()
        self._inputs = np.zeros(shape, self._dtype)
        self._outputs = np.zeros((ticks, rows, self._output_size), self._dtype)
        self._block[1], self._block[2] = ctypes.addressof(self._sources), ctypes.addressof(self._targets)
        self._block[3], self._block[4] = self._inputs.ctypes.data, self._outputs.ctypes.data
        self._block[5] = ctypes.addressof(self._finite)
        self._block[9], self._block[10] = rows, ticks


def _aligned(size: int, dtype: Any) -> Array:
    """Zeros that begin with a line of the cache."""
    room = np.zeros(size + 64, dtype)
    skipped = -room.ctypes.data % 64 // room.itemsize
    return room[skipped : skipped + size]
