"""What can be seen of a state: its arrays by name, thinned where they would be too large to be looked at."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.layout import StateLayout
from dnc_serve.model.state import MemoryState

# What the last timestep asked of memory: no part of a state, but it follows from one.
INTERFACE = "interface"


class Shown(NamedTuple):
    """An array as it is shown, and the shape that it was thinned from."""

    values: Float32
    full_shape: tuple[int, ...]


def checked_names(layout: StateLayout, names: Iterable[str]) -> tuple[str, ...]:
    """The names of arrays to show, all of the state's if none is given; raises BAD_REQUEST for one that is unknown."""
    known = tuple(dict.fromkeys([*MemoryState._fields, *(field.name for field in layout.fields)]))
    wanted = tuple(dict.fromkeys(names)) or known
    for name in wanted:
        if name not in (*known, INTERFACE):
            raise ServeError(
                "BAD_REQUEST",
                f"there is no array {name!r}, expected any of {', '.join((*known, INTERFACE))}",
                got=name,
            )
    return wanted


def whole(engine: Engine, state: Float32, names: Iterable[str]) -> dict[str, Shown]:
    """Arrays of a state [S], flattened as the seed's debug table has them: [parts, …], parts being memories or layers.

    They may be views of the state.
    """
    arrays = _arrays(engine, state, names)
    return {name: Shown(array.reshape(len(array), -1), array.shape) for name, array in arrays.items()}


def thinned(engine: Engine, state: Float32, names: Iterable[str], max_cells: int) -> dict[str, Shown]:
    """Arrays of a state [S] in their own shapes, parts first, each of so many elements at most; see `thin`."""
    arrays = _arrays(engine, state, names)
    return {name: Shown(thin(array, max_cells), array.shape) for name, array in arrays.items()}


def _arrays(engine: Engine, state: Float32, names: Iterable[str]) -> dict[str, Float32]:
    arrays: dict[str, Float32] = {}
    for name in names:
        if name == INTERFACE:
            arrays |= interface(engine, state)
        else:
            arrays[name] = _array(engine.layout, state, name)
    return arrays


def _array(layout: StateLayout, state: Float32, name: str) -> Float32:
    """One array of a state in its own shape, the parts (memories or layers) first: [parts, …]."""
    parts = [
        state[part.offset : part.offset + part.size].reshape(part.shape) for part in layout.fields if part.name == name
    ]
    return parts[0][None] if len(parts) == 1 else np.stack(parts)


def interface(engine: Engine, state: Float32) -> dict[str, Float32]:
    """The gates [L, heads], read modes [L, R, M] and strengths [L, heads] of the timestep that led to a state.

    Empty for a state to which no timestep led: a new one, or one that was reset as a whole.
    """
    if not _array(engine.layout, state, "controller_hidden").any():
        return {}
    return engine.runner.interface(state)


def thin(array: Float32, max_cells: int) -> Float32:
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
    strongest: Float32 = np.where(highest >= -lowest, highest, lowest)
    return strongest


def _block_length(length: int, at_most: int) -> int:
    """How long blocks are if there are at most so many; it follows from their number too."""
    return math.ceil(length / math.ceil(length / math.ceil(length / at_most)))


def _blocks(extreme: np.ufunc, array: Float32, height: int, width: int) -> Float32:
    """The extreme value of each block [height, width]."""
    # Row by row first, which numpy does at the speed of memory.
    strips = [extreme.reduce(array[..., row : row + height, :], axis=-2) for row in range(0, array.shape[-2], height)]
    reduced: Float32 = extreme.reduceat(np.stack(strips, axis=-2), range(0, array.shape[-1], width), axis=-1)
    return reduced
