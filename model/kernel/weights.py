"""All weights of a DNC as one vector, in the order in which a tick uses them."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.interface import interface_sections

# Each matrix lies in panels of so many columns, as many as a row's sum fills registers with, and of LANES at its end.
LANES = 16
PANEL = 4 * LANES
BLOCK = 4  # rows that share a pass over the weights

Array = np.ndarray[Any, np.dtype[Any]]


def padded(size: int) -> int:
    """The size rounded up to whole lanes."""
    return (size + LANES - 1) // LANES * LANES


def pack_weights(config: DNCConfig, weights: Mapping[str, Tensor], dtype: Any = np.float32) -> Array:
    """From a DNC's `state_dict`, each matrix as [inputs + 1, outputs, padded], its bias in the last row.

    A cell has one matrix for its input and its previous hidden state, one below the other. A GRU's has four columns for
    each hidden number: what comes to the new gate from the input is apart from what comes from the hidden state.
    """
    pieces: list[Array] = []

    def add(weight: Array, bias: Array) -> None:
        pieces.extend(pack_matrix(weight, bias, dtype))

    def named(name: str) -> Array:
        array: Array = weights[name].detach().cpu().numpy().astype(dtype)
        return array

    for layer in range(config.num_layers):
        tower, place = (0, layer) if config.share_memory else (layer, 0)
        for depth in range(config.num_hidden_layers):
            cell = f"towers.{tower}.controllers.{place}.cells.{depth}."
            add(*_cell(config, *(named(cell + part) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))))
        interface = f"towers.{tower}.access.interface."
        parts = [f"linears.{part}" for part in interface_sections(config)] if config.independent_linears else ["linear"]
        add(*(np.concatenate([named(f"{interface}{part}.{kind}") for part in parts]) for kind in ("weight", "bias")))
    add(named("output.weight"), named("output.bias"))
    return np.concatenate(pieces)


def pack_matrix(weight: Array, bias: Array, dtype: Any) -> list[Array]:
    """Panels of a matrix [outputs, inputs], one behind the other; in each inputs run slowest, and the bias ends it."""
    outputs, inputs = weight.shape
    matrix = np.zeros((inputs + 1, padded(outputs)), dtype)
    matrix[:inputs, :outputs], matrix[inputs, :outputs] = weight.T, bias
    wide = matrix.shape[1] // PANEL * PANEL
    edges = [*range(0, wide, PANEL), *range(wide, matrix.shape[1] + 1, LANES)]
    return [matrix[:, left:right].ravel() for left, right in pairwise(edges)]


def _cell(
    config: DNCConfig, from_input: Array, from_hidden: Array, bias_input: Array, bias_hidden: Array
) -> tuple[Array, Array]:
    if config.rnn_type != "gru":
        return np.concatenate((from_input, from_hidden), 1), bias_input + bias_hidden
    gates, none = 2 * config.hidden_size, np.zeros_like
    from_input = np.concatenate((from_input, none(from_input[gates:])))
    from_hidden = np.concatenate((from_hidden[:gates], none(from_hidden[gates:]), from_hidden[gates:]))
    bias = np.concatenate((bias_input[:gates] + bias_hidden[:gates], bias_input[gates:], bias_hidden[gates:]))
    return np.concatenate((from_input, from_hidden), 1), bias
