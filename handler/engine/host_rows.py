"""Host memory for states: one block of rows, so that states that come and go for days leave no holes between them."""

import numpy as np

from dnc_serve.handler.api.arrays import Float32

NO_ROW = -1


class HostRows:
    """A block [rows, S] and the list of its free rows. Memory is taken from the system as rows are first written to."""

    def __init__(self, rows: int, state_size: int) -> None:
        self._block: Float32 = np.empty((rows, state_size), np.float32)
        self._free = list(range(rows - 1, -1, -1))

    def keep(self, state: Float32 | None) -> tuple[Float32, int]:
        """A copy of the state [S] (None: zeros) and its row.

        What finds no row, because others have yet to be written to the store, gets memory of its own and NO_ROW.
        """
        if self._free:
            row = self._free.pop()
            self._block[row] = 0.0 if state is None else state
            return self._block[row], row
        return (np.zeros(self._block.shape[1], np.float32) if state is None else state.copy()), NO_ROW

    def give(self, row: int) -> None:
        """The row is free again."""
        if row != NO_ROW:
            self._free.append(row)
