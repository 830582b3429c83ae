"""Thinning: a cell is the strongest of those that it stands for."""

import numpy as np
import pytest

from dnc_serve.handler.api.views import thin
from dnc_serve.handler.arrays import Float32


def strongest(block: Float32) -> float:
    return float(block.ravel()[np.abs(block).argmax()])


@pytest.mark.parametrize("shape", [(1, 9, 7), (2, 3, 40, 40), (1, 500), (5, 1, 64), (1, 1, 1, 1)])
@pytest.mark.parametrize("max_cells", [1, 7, 64, 1000])
def test_thinned_cells_are_the_strongest_of_their_blocks(shape: tuple[int, ...], max_cells: int) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    thinned = thin(array, max_cells)
    leading = int(np.prod(shape[:-2]))
    assert thinned.shape[:-2] == shape[:-2]
    assert thinned.size <= max(max_cells, leading)
    height, width = (-(-full // few) for full, few in zip(shape[-2:], thinned.shape[-2:], strict=True))
    for index in np.ndindex(thinned.shape):
        *lead, row, column = index
        block = array[(*lead, slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))]
        assert thinned[index] == strongest(block)
