"""Rows of packed state on the device: those of resident sessions, and working rows of chunks under way."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dnc_serve.handler.codec import Float32


class Slab:
    """A tensor [rows, S] and the list of its free rows."""

    def __init__(self, rows: int, state_size: int, device: torch.device) -> None:
        self.states = torch.zeros(rows, state_size, device=device)
        self._free = list(range(rows - 1, -1, -1))
        # On the CPU, single rows are copied through numpy: a third of the cost of a tensor operation.
        self._numpy: Float32 | None = self.states.numpy() if device.type == "cpu" else None

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free row, its content undefined; there must be one."""
        return self._free.pop()

    def give(self, row: int) -> None:
        """The row is free again."""
        self._free.append(row)

    def read(self, row: int) -> Float32:
        """A copy of a row [S] in host memory."""
        if self._numpy is not None:
            return np.array(self._numpy[row])
        copy: Float32 = self.states[row].cpu().numpy()
        return copy

    def write(self, row: int, state: Float32 | None) -> None:
        """Sets a row from host memory; None is the zero state."""
        if self._numpy is not None:
            self._numpy[row] = 0.0 if state is None else state
        elif state is None:
            self.states[row].zero_()
        else:
            self.states[row].copy_(torch.from_numpy(np.ascontiguousarray(state)))

    def gather(self, rows: Sequence[int], tile: Tensor) -> None:
        """Copies rows to the front of a tile [B, S]."""
        if len(rows) == 1:
            tile[0].copy_(self.states[rows[0]])
        else:
            torch.index_select(self.states, 0, self._index(rows), out=tile[: len(rows)])

    def scatter(self, rows: Sequence[int], tile: Tensor) -> None:
        """Copies the front of a tile [B, S] to rows."""
        if len(rows) == 1:
            self.states[rows[0]].copy_(tile[0])
        else:
            self.states.index_copy_(0, self._index(rows), tile[: len(rows)])

    def _index(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, device=self.states.device)
