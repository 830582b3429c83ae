"""What can be seen of a state: its arrays by name, thinned where they would be too large to be looked at."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.artifact import Artifact


class Shown(NamedTuple):
    """An array as it is shown, and the shape that it was thinned from."""

    values: Array
    full_shape: tuple[int, ...]


def checked_names(artifact: Artifact, names: Iterable[str]) -> tuple[str, ...]:
    """The names of arrays to show, all of the state's if none is given; raises BAD_REQUEST for one that is unknown."""
    known = artifact.layout.names
    wanted = tuple(dict.fromkeys(names)) or known
    for name in wanted:
        if name not in (*known, *artifact.derived):
            raise ServeError(
                "BAD_REQUEST",
                f"there is no array {name!r}, expected any of {', '.join((*known, *artifact.derived))}",
                got=name,
            )
    return wanted


def whole(artifact: Artifact, state: Float32, names: Iterable[str]) -> dict[str, Shown]:
    """Arrays of a state [S] in their own shapes, parts (memories or layers) first: [parts, …]. May be views of it."""
    return {name: Shown(array, array.shape) for name, array in _arrays(artifact, state, names).items()}


def thinned(artifact: Artifact, state: Float32, names: Iterable[str], max_cells: int) -> dict[str, Shown]:
    """As `whole`, each of so many elements at most; see `thin`."""
    arrays = _arrays(artifact, state, names)
    return {name: Shown(thin(array, max_cells), array.shape) for name, array in arrays.items()}


def _arrays(artifact: Artifact, state: Float32, names: Iterable[str]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name in names:
        if name in artifact.derived:
            arrays |= artifact.derive(name, state)
        else:
            arrays[name] = artifact.layout.array(state, name)
    return arrays


def thin(array: Array, max_cells: int) -> Array:
    """The array [..., rows, columns] itself, or one with fewer rows and columns that has at most so many elements (but
    one for each leading index).

    Each cell is the value of largest magnitude of the block that it stands for; blocks are ceil(full / thinned) wide.
    """
    if array.size <= max_cells:
        return array
    rows, columns = array.shape[-2:]
    budget = max(1, max_cells // math.prod(array.shape[:-2]))
    side = math.isqrt(budget)
    if rows <= side:
        most_rows, most_columns = rows, budget // rows
    elif columns <= side:
        most_rows, most_columns = budget // columns, columns
    else:
        most_rows = most_columns = side
    height, width = _block_length(rows, most_rows), _block_length(columns, most_columns)
    highest, lowest = _blocks(np.maximum, array, height, width), _blocks(np.minimum, array, height, width)
    strongest: Array = np.where(highest.astype(np.float64) >= -lowest.astype(np.float64), highest, lowest)
    return strongest


def _block_length(length: int, at_most: int) -> int:
    """How long blocks are if there are at most so many; it follows from their number too."""
    return math.ceil(length / math.ceil(length / math.ceil(length / at_most)))


def _blocks(extreme: np.ufunc, array: Array, height: int, width: int) -> Array:
    """The extreme value of each block [height, width]."""
    # Row by row first, which numpy does at the speed of memory.
    strips = [extreme.reduce(array[..., row : row + height, :], axis=-2) for row in range(0, array.shape[-2], height)]
    reduced: Array = extreme.reduceat(np.stack(strips, axis=-2), range(0, array.shape[-1], width), axis=-1)
    return reduced
