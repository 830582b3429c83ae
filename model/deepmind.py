"""Weights of DeepMind's own model (`deepmind/dnc`, Sonnet), made into a DNC that gives the same numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnc_serve.model.controller import FORGET_BIAS
from dnc_serve.model.dnc import DNC

# Our names for the parts of the interface vector, and the names of DeepMind's linear layers.
INTERFACE_NAMES = {
    "write_keys": "write_keys",
    "read_keys": "read_keys",
    "write_vectors": "write_vectors",
    "write_strengths": "write_strengths",
    "read_strengths": "read_strengths",
    "erase_vectors": "erase_vectors",
    "free_gates": "free_gate",
    "allocation_gates": "allocation_gate",
    "write_gates": "write_gate",
    "read_modes": "read_mode",
}


def from_deepmind(
    weights: Mapping[str, Any],
    *,
    nr_cells: int,
    cell_size: int,
    read_heads: int,
    write_heads: int = 1,
    clip: float = 20,
    **placement: Any,
) -> DNC:
    """The DNC that computes what DeepMind's does with these weights, in the arrays' precision.

    `weights` maps names as `lstm/w_gates`, `memory_access/read_keys/w` or `output_linear/b` to arrays; a linear layer
    is x·w + b. `clip` 0 clips nothing. `placement`: batch_first, debug, device, gpu_id, independent_linears.

    Raises ValueError if an array is missing or doesn't have the shape that these sizes ask for.
    """
    arrays = {name.removeprefix("weights/"): np.asarray(array) for name, array in weights.items()}
    gates, output = _array(arrays, "lstm/w_gates"), _array(arrays, "output_linear/w")
    hidden_size = gates.shape[1] // 4
    input_size = gates.shape[0] - hidden_size - read_heads * cell_size
    if input_size < 1:
        raise ValueError(
            f"lstm/w_gates has {gates.shape[0]} rows; expected input size + read_heads * cell_size + hidden size, with "
            f"read_heads = {read_heads}, cell_size = {cell_size} and hidden size = {hidden_size}"
        )
    dnc = DNC(
        input_size,
        hidden_size,
        output_size=output.shape[1],
        num_hidden_layers=1,
        nr_cells=nr_cells,
        cell_size=cell_size,
        read_heads=read_heads,
        write_heads=write_heads,
        clip=clip,
        **placement,
    ).to(torch.from_numpy(gates[:0]).dtype)

    cell = dnc.cells()[0][0]
    gates_by_input = _torch_gates(gates)
    bias = _torch_gates(_array(arrays, "lstm/b_gates"))
    bias[hidden_size : 2 * hidden_size] += FORGET_BIAS
    features = gates.shape[0] - hidden_size
    _fill(cell.weight_ih, gates_by_input[:, :features], "lstm/w_gates")
    _fill(cell.weight_hh, gates_by_input[:, features:], "lstm/w_gates")
    _fill(cell.bias_ih, bias, "lstm/b_gates")
    _fill(cell.bias_hh, np.zeros_like(bias), "lstm/b_gates")
    for part, name in INTERFACE_NAMES.items():
        weight, bias_part = dnc.interfaces()[0].section(part)
        _fill(weight, _array(arrays, f"memory_access/{name}/w").T, f"memory_access/{name}/w")
        _fill(bias_part, _array(arrays, f"memory_access/{name}/b"), f"memory_access/{name}/b")
    _fill(dnc.output.weight, output.T, "output_linear/w")
    _fill(dnc.output.bias, _array(arrays, "output_linear/b"), "output_linear/b")
    return dnc


def _torch_gates(gates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Transposed, and from input, candidate, forget, output to torch's input, forget, candidate, output."""
    i, candidate, forget, output = np.split(gates.T, 4)
    return np.concatenate([i, forget, candidate, output])


def _array(arrays: Mapping[str, np.ndarray[Any, Any]], name: str) -> np.ndarray[Any, Any]:
    if name not in arrays:
        raise ValueError(f"weights lack {name!r}; they have {', '.join(sorted(arrays))}")
    return arrays[name]


def _fill(parameter: Tensor, values: np.ndarray[Any, Any], name: str) -> None:
    if tuple(parameter.shape) != values.shape:
        raise ValueError(f"{name} gives {list(values.shape)}, transposed; expected {list(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
