"""Hidden states as callers give them: the `dnc` package's tuples, dicts and Nones made into a `DNCState`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.state import ControllerHidden, DNCState, MemoryState


def as_state(config: DNCConfig, hidden: Any, zeros: DNCState) -> DNCState:
    """What `forward` was given as `hidden`, with `zeros`, the model's initial state, for what is None.

    Raises ValueError or TypeError that names the part, what it is and what was expected.
    """
    if hidden is None:
        return zeros
    if not isinstance(hidden, Sequence) or len(hidden) != 3:
        raise TypeError(f"hidden is {_describe(hidden)}; expected None or (controller_hidden, memory, read_vectors)")
    given_hidden, given_memory, read_vectors = hidden
    like = zeros.read_vectors
    hidden_shape, memory_shapes, read_shape = state_shapes(config, like.size(0))
    given_hidden = zeros.controller_hidden if given_hidden is None else given_hidden
    given_memory = zeros.memory if given_memory is None else given_memory
    read_vectors = zeros.read_vectors if read_vectors is None else read_vectors

    controller_hidden = [
        _controller_layer(config, layer, f"controller_hidden[{index}]", hidden_shape, like)
        for index, layer in enumerate(_listed("controller_hidden", given_hidden, config.num_layers))
    ]
    if isinstance(given_memory, Mapping) or hasattr(given_memory, "link_matrix"):
        given_memory = [given_memory]
    memory = [
        _memory(state, f"memory[{index}]", memory_shapes, like)
        for index, state in enumerate(_listed("memory", given_memory, config.num_memories))
    ]
    return DNCState(controller_hidden, memory, _checked("read_vectors", read_vectors, read_shape, like))


def state_shapes(config: DNCConfig, batch_size: int) -> tuple[list[int], dict[str, list[int]], list[int]]:
    """Shapes of one layer's hidden (and cell) state, of a memory's tensors by name, and of the read vectors."""
    slots, read, write = config.nr_cells, config.read_heads, config.write_heads
    memory = {
        "memory": [batch_size, slots, config.cell_size],
        "link_matrix": [batch_size, write, slots, slots],
        "precedence": [batch_size, write, slots],
        "read_weights": [batch_size, read, slots],
        "write_weights": [batch_size, write, slots],
        "usage_vector": [batch_size, slots],
    }
    return [config.num_hidden_layers, batch_size, config.hidden_size], memory, [batch_size, config.read_size]


def _listed(name: str, values: Any, length: int) -> Sequence[Any]:
    if isinstance(values, Tensor) or not isinstance(values, Sequence) or len(values) != length:
        raise ValueError(f"{name} is {_describe(values)}; expected a list of {length}")
    return values


def _controller_layer(config: DNCConfig, layer: Any, name: str, shape: list[int], like: Tensor) -> ControllerHidden:
    if config.rnn_type != "lstm":
        return _checked(name, layer, shape, like)
    if isinstance(layer, Tensor) or not isinstance(layer, Sequence) or len(layer) != 2:
        raise ValueError(f"{name} is {_describe(layer)}; expected an LSTM's (hidden, cell)")
    return _checked(f"{name}[0]", layer[0], shape, like), _checked(f"{name}[1]", layer[1], shape, like)


def _memory(state: Any, name: str, shapes: dict[str, list[int]], like: Tensor) -> MemoryState:
    if isinstance(state, Mapping):
        missing = sorted(set(shapes) - set(state))
        if missing:
            raise ValueError(f"{name} lacks {missing}; expected a dict with {list(shapes)}")
        tensors = [state[field] for field in shapes]
    elif isinstance(state, tuple) and len(state) == len(shapes):
        tensors = list(state)
    else:
        raise TypeError(f"{name} is {_describe(state)}; expected a MemoryState or a dict with {list(shapes)}")
    return MemoryState(
        *(
            _checked(f"{name}.{field}", tensor, shapes[field], like)
            for field, tensor in zip(shapes, tensors, strict=True)
        )
    )


def _checked(name: str, tensor: Any, shape: list[int], like: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {_describe(tensor)}; expected a tensor of shape {shape}")
    if list(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {shape}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}; expected {like.dtype} on {like.device}, as the model is"
        )
    return tensor


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
