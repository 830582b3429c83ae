"""Rows of packed state on the device: those of resident sessions, and working rows of chunks under way."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dnc_serve.handler.arrays import Float32
from dnc_serve.model.rows import RowLayout


class StateRows:
    """A tensor [rows, S] and the list of its free rows."""

    def __init__(self, rows: int, layout: RowLayout, device: torch.device) -> None:
        # The same memory, where that is the host's; there numpy's zeros take none before they are written to.
        self.array: Float32 | None = _aligned_zeros(rows, layout.size) if device.type == "cpu" else None
        self.states = (
            torch.zeros(rows, layout.size, device=device) if self.array is None else torch.from_numpy(self.array)
        )
        self._layout = layout
        self._initial = torch.from_numpy(layout.initial).to(device)
        self._free = list(range(rows - 1, -1, -1))

    def take(self) -> int:
        """A free row, its content undefined; there must be one."""
        return self._free.pop()

    def give(self, row: int) -> None:
        """The row is free again."""
        self._free.append(row)

    def read(self, row: int) -> Float32:
        """A copy of a row [S] in host memory."""
        copy: Float32 = self.states[row].cpu().numpy() if self.array is None else self.array[row].copy()
        return copy

    def write(self, row: int, state: Float32 | None) -> None:
        """Sets a row from host memory; None is a new session's state."""
        if state is None:
            self.reset(row)
        elif self.array is not None:
            self.array[row] = state
        else:
            self.states[row].copy_(torch.from_numpy(np.ascontiguousarray(state)))

    def gather(self, sources: Sequence[int], count: int) -> Tensor:
        """Copies of rows as a tile [count, S] on the device, zeros behind them."""
        if self.array is None:
            tile = torch.zeros(count, self._layout.size, device=self.states.device)
            torch.index_select(self.states, 0, self._numbers(sources), out=tile[: len(sources)])
            return tile
        gathered = np.zeros((count, self._layout.size), np.float32)
        self.array.take(sources, axis=0, out=gathered[: len(sources)], mode="clip")  # else numpy takes a copy first
        return torch.from_numpy(gathered)

    def scatter(self, targets: Sequence[int], tile: Tensor) -> None:
        """Sets rows to the first ones of a tile."""
        if self.array is None:
            self.states.index_copy_(0, self._numbers(targets), tile[: len(targets)])
        else:
            self.array[list(targets)] = tile.numpy()[: len(targets)]

    def _numbers(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, device=self.states.device)

    def copy(self, source: int, target: int) -> None:
        """Copies one row to another."""
        if self.array is not None:
            self.array[target] = self.array[source]
        else:
            self.states[target].copy_(self.states[source])

    def reset(self, row: int, scope: str = "all") -> None:
        """Puts back what a new session has: of scope "all", or of its "experience" alone."""
        start = self._layout.start_of(scope)
        self.states[row, start:].copy_(self._initial[start:])


def _aligned_zeros(rows: int, size: int) -> Float32:
    """[rows, size], which begins with a line of the cache."""
    room = np.zeros(rows * size + 16, np.float32)
    skipped = -room.ctypes.data % 64 // 4
    return room[skipped : skipped + rows * size].reshape(rows, size)
