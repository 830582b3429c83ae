"""Rows of packed state on the device: those of resident sessions, and working rows of chunks under way."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dnc_serve.handler.doors.codec import Float32

# So few rows are copied one by one, through numpy: a tensor operation costs as much as several copies.
FEW_ROWS = 4


class Slab:
    """A tensor [rows, S] and the list of its free rows."""

    def __init__(self, rows: int, state_size: int, device: torch.device) -> None:
        self.states = torch.zeros(rows, state_size, device=device)
        self._free = list(range(rows - 1, -1, -1))
        self._numpy: Float32 | None = self.states.numpy() if device.type == "cpu" else None

    @property
    def numpy(self) -> Float32:
        """All rows [rows, S], of a CPU's slab."""
        assert self._numpy is not None
        return self._numpy

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
        if self._numpy is not None and len(rows) <= FEW_ROWS:
            into = tile.numpy()
            for place, row in enumerate(rows):
                into[place] = self._numpy[row]
        else:
            torch.index_select(self.states, 0, self._index(rows), out=tile[: len(rows)])

    def scatter(self, rows: Sequence[int], tile: Tensor) -> None:
        """Copies the front of a tile [B, S] to rows."""
        if self._numpy is not None and len(rows) <= FEW_ROWS:
            out_of = tile.numpy()
            for place, row in enumerate(rows):
                self._numpy[row] = out_of[place]
        else:
            self.states.index_copy_(0, self._index(rows), tile[: len(rows)])

    def finite(self, rows: int, tile: Tensor) -> list[bool]:
        """Whether rows at the front of a tile [B, S] hold finite numbers only; may say no where only a sum overflows.

        A sum is finite only if all its terms are: one pass, and whoever wants to know exactly looks again.
        """
        return [math.isfinite(total) for total in tile[:rows].sum(dim=1).tolist()]

    def _index(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, device=self.states.device)
