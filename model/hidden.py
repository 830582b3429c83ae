"""Hidden states as callers give them: the `dnc` package's tuples, dicts and Nones made into a `DNCState`."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    controller_hidden, memory, read_vectors = hidden
    if controller_hidden is None:
        controller_hidden = zeros.controller_hidden
    if memory is None:
        memory = zeros.memory
    if read_vectors is None:
        read_vectors = zeros.read_vectors

    layers: list[ControllerHidden] = [
        _controller_layer(layer, f"controller_hidden[{index}]", zeros.controller_hidden[index])
        for index, layer in enumerate(_listed("controller_hidden", controller_hidden, config.num_layers))
    ]
    if isinstance(memory, Mapping) or hasattr(memory, "link_matrix"):
        memory = [memory]
    memories = [
        _memory(state, f"memory[{index}]", zeros.memory[index])
        for index, state in enumerate(_listed("memory", memory, config.num_memories))
    ]
    return DNCState(layers, memories, _checked("read_vectors", read_vectors, zeros.read_vectors))


def _listed(name: str, values: Any, length: int) -> Sequence[Any]:
    if isinstance(values, Tensor) or not isinstance(values, Sequence) or len(values) != length:
        raise ValueError(f"{name} is {_describe(values)}; expected a list of {length}")
    return values


def _controller_layer(layer: Any, name: str, zeros: ControllerHidden) -> ControllerHidden:
    if isinstance(zeros, Tensor):
        return _checked(name, layer, zeros)
    if isinstance(layer, Tensor) or not isinstance(layer, Sequence) or len(layer) != 2:
        raise ValueError(f"{name} is {_describe(layer)}; expected an LSTM's (hidden, cell)")
    return _checked(f"{name}[0]", layer[0], zeros[0]), _checked(f"{name}[1]", layer[1], zeros[1])


def _memory(state: Any, name: str, zeros: MemoryState) -> MemoryState:
    fields = MemoryState._fields
    if isinstance(state, Mapping):
        missing = [field for field in fields if field not in state]
        if missing:
            raise ValueError(f"{name} lacks {', '.join(missing)}; expected a dict with {', '.join(fields)}")
        state = tuple(state[field] for field in fields)
    if not isinstance(state, tuple) or len(state) != len(fields):
        raise TypeError(f"{name} is {_describe(state)}; expected a MemoryState or a dict with {', '.join(fields)}")
    return MemoryState(*(_checked(f"{name}.{field}", *pair) for field, *pair in zip(fields, state, zeros, strict=True)))


def _checked(name: str, tensor: Any, zeros: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {_describe(tensor)}; expected a tensor of shape {list(zeros.shape)}")
    if tensor.shape != zeros.shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {list(zeros.shape)}")
    if tensor.dtype != zeros.dtype or tensor.device != zeros.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}; expected {zeros.dtype} on {zeros.device}, as the model is"
        )
    return tensor


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
