"""Checkpoints of the `dnc` package of PyPI, made into a DNC that gives the same outputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnc_serve.model.controller import GATES
from dnc_serve.model.dnc import DNC

# Its maths, where it leaves DeepMind's.
PACKAGE_OPTIONS: dict[str, Any] = {
    "key_activation": "tanh",
    "cosine": "dnc_package",
    "allocation_order": "usage",
    "clip_scope": "controller_output",
    "stop_usage_gradient": False,
}

# Our parts of the interface vector, and its linear layers; in this order they are one layer's rows.
INTERFACE_NAMES = {
    "read_keys": "read_keys_transform",
    "read_strengths": "read_strengths_transform",
    "write_keys": "write_key_transform",
    "write_strengths": "write_strength_transform",
    "erase_vectors": "erase_vector_transform",
    "write_vectors": "write_vector_transform",
    "free_gates": "free_gates_transform",
    "allocation_gates": "allocation_gate_transform",
    "write_gates": "write_gate_transform",
    "read_modes": "read_modes_transform",
}


def from_dnc_package(
    state_dict: Mapping[str, Tensor],
    *,
    nr_cells: int,
    cell_size: int,
    read_heads: int,
    nonlinearity: str = "tanh",
    clip: float = 20,
    dropout: float = 0,
    read_feedback: str = "call",
    **placement: Any,
) -> DNC:
    """The DNC that computes, call by call, what the package's model with this `state_dict` does.

    What the weights can't tell are the arguments that the model was made with; all else is read off their names and
    shapes. Like the package, the result feeds read vectors back between calls of `forward` only, not at each of a
    call's timesteps; such a model can't be served. With `read_feedback="timestep"` it can, and is the same to those who
    call it with one timestep at a time. One thing differs: the package draws the first hidden state at random, this one
    starts from zeros.
    `placement`: batch_first, debug, device, gpu_id.

    Raises ValueError if a tensor is missing or doesn't have the shape that these sizes ask for.
    """
    weights = dict(state_dict)
    rnn_type = _rnn_type(weights)
    num_layers = _count(weights, f"{rnn_type}_layer_{{}}.weight_ih_l0")
    num_hidden_layers = _count(weights, f"{rnn_type}_layer_0.weight_ih_l{{}}")
    shared = any(name.startswith("rnn_layer_memory_shared.") for name in weights)
    hidden_size = weights[f"{rnn_type}_layer_0.weight_hh_l0"].shape[1]
    bias = f"{rnn_type}_layer_0.bias_ih_l0" in weights
    output = _tensor(weights, "output.weight")
    dnc = DNC(
        output.shape[0],
        hidden_size,
        rnn_type,
        num_layers,
        num_hidden_layers,
        bias=bias,
        dropout=dropout,
        nr_cells=nr_cells,
        read_heads=read_heads,
        cell_size=cell_size,
        nonlinearity=nonlinearity,
        independent_linears=any("read_keys_transform" in name for name in weights),
        share_memory=shared,
        clip=clip,
        **PACKAGE_OPTIONS,
        read_feedback=read_feedback,
        **placement,
    ).to(output.dtype)

    for layer, cells in enumerate(dnc.cells()):
        for depth, cell in enumerate(cells):
            prefix, suffix = f"{rnn_type}_layer_{layer}.", f"_l{depth}"
            _fill(cell.weight_ih, weights, f"{prefix}weight_ih{suffix}")
            _fill(cell.weight_hh, weights, f"{prefix}weight_hh{suffix}")
            if bias:
                _fill(cell.bias_ih, weights, f"{prefix}bias_ih{suffix}")
                _fill(cell.bias_hh, weights, f"{prefix}bias_hh{suffix}")
            else:  # nor the constant forget bias that our LSTM has without one
                cell.bias_ih.zero_()
    for memory, interface in enumerate(dnc.interfaces()):
        prefix = f"rnn_layer_memory_{'shared' if shared else memory}."
        row = 0
        for part, name in INTERFACE_NAMES.items():
            weight, bias_part = interface.section(part)
            if interface.independent:
                _fill(weight, weights, f"{prefix}{name}.weight")
                _fill(bias_part, weights, f"{prefix}{name}.bias")
            else:
                rows = slice(row, row + len(weight))
                _fill(weight, weights, f"{prefix}interface_weights.weight", rows)
                _fill(bias_part, weights, f"{prefix}interface_weights.bias", rows)
                row = rows.stop
    _fill(dnc.output.weight, weights, "output.weight")
    _fill(dnc.output.bias, weights, "output.bias")
    return dnc


def _rnn_type(weights: Mapping[str, Tensor]) -> str:
    for rnn_type in GATES:
        if f"{rnn_type}_layer_0.weight_ih_l0" in weights:
            return rnn_type
    raise ValueError(
        "state_dict has no controller's weights, as lstm_layer_0.weight_ih_l0; it has "
        f"{', '.join(sorted(weights)) or 'nothing'}"
    )


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    count = 0
    while pattern.format(count) in weights:
        count += 1
    return count


def _tensor(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise ValueError(f"state_dict lacks {name!r}; it has {', '.join(sorted(weights))}")
    return weights[name]


def _fill(parameter: Tensor, weights: Mapping[str, Tensor], name: str, rows: slice = slice(None)) -> None:
    values = _tensor(weights, name)[rows]
    if parameter.shape != values.shape:
        raise ValueError(
            f"{name} gives shape {list(values.shape)}; nr_cells, cell_size and read_heads ask for "
            f"{list(parameter.shape)}"
        )
    with torch.no_grad():
        parameter.copy_(values)
