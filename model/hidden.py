"""Hidden states as callers give them: the `dnc` package's tuples, dicts and Nones made into a `DNCState`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.state import INTEGERS, MEMORY_KINDS, ControllerHidden, DNCState, Memory, memory_shapes

Shape = tuple[int, ...]


class Network(Protocol):
    """What whole sequences, and the states that they begin with, ask of a DNC."""

    config: DNCConfig
    like: Tensor

    @property
    def batch_first(self) -> bool: ...

    @property
    def debug(self) -> bool: ...

    @property
    def feed_reads_at_once(self) -> bool: ...

    def initial_state(self, batch_size: int) -> DNCState: ...

    def step_observed(
        self, x: Tensor, state: DNCState, pass_through_memory: bool, accesses: list[Memory]
    ) -> tuple[Tensor, DNCState]: ...


def as_state(dnc: Network, hidden: Any, batch_size: int) -> DNCState:
    """What `forward` was given as `hidden`, with the model's initial state for what is None.

    Raises ValueError or TypeError that names the part, what it is and what was expected.
    """
    if hidden is None:
        return dnc.initial_state(batch_size)
    if not isinstance(hidden, Sequence) or len(hidden) != 3:
        raise TypeError(f"hidden is {_describe(hidden)}; expected None or (controller_hidden, memory, read_vectors)")
    controller_hidden, memory, read_vectors = hidden
    if controller_hidden is None or memory is None or read_vectors is None:
        zeros = dnc.initial_state(batch_size)
        controller_hidden = zeros.controller_hidden if controller_hidden is None else controller_hidden
        memory = zeros.memory if memory is None else memory
        read_vectors = zeros.read_vectors if read_vectors is None else read_vectors

    config, like = dnc.config, dnc.like
    shape = (config.num_hidden_layers, batch_size, config.hidden_size)
    layers = [
        _controller_layer(config, layer, f"controller_hidden[{index}]", shape, like)
        for index, layer in enumerate(_listed("controller_hidden", controller_hidden, config.num_layers))
    ]
    if isinstance(memory, Mapping) or hasattr(memory, "memory"):
        memory = [memory]
    shapes = {name: (batch_size, *shape) for name, shape in memory_shapes(config).items()}
    memories = [
        _memory(MEMORY_KINDS[config.memory], state, f"memory[{index}]", shapes, like)
        for index, state in enumerate(_listed("memory", memory, config.num_memories))
    ]
    return DNCState(layers, memories, _checked("read_vectors", read_vectors, (batch_size, config.read_size), like))


def _listed(name: str, values: Any, length: int) -> Sequence[Any]:
    if isinstance(values, Tensor) or not isinstance(values, Sequence) or len(values) != length:
        raise ValueError(f"{name} is {_describe(values)}; expected a list of {length}")
    return values


def _controller_layer(config: DNCConfig, layer: Any, name: str, shape: Shape, like: Tensor) -> ControllerHidden:
    if config.rnn_type != "lstm":
        return _checked(name, layer, shape, like)
    if isinstance(layer, Tensor) or not isinstance(layer, Sequence) or len(layer) != 2:
        raise ValueError(f"{name} is {_describe(layer)}; expected an LSTM's (hidden, cell)")
    return _checked(f"{name}[0]", layer[0], shape, like), _checked(f"{name}[1]", layer[1], shape, like)


def _memory(kind: Any, state: Any, name: str, shapes: dict[str, Shape], like: Tensor) -> Memory:
    if isinstance(state, Mapping):
        missing = [field for field in shapes if field not in state]
        if missing:
            raise ValueError(f"{name} lacks {', '.join(missing)}; expected a dict with {', '.join(shapes)}")
        state = tuple(state[field] for field in shapes)
    if not isinstance(state, tuple) or len(state) != len(shapes):
        raise TypeError(f"{name} is {_describe(state)}; expected a {kind.__name__} or a dict with {', '.join(shapes)}")
    parts = zip(shapes.items(), state, strict=True)
    integers = like.to(torch.int32)
    memory: Memory = kind(
        *(
            _checked(f"{name}.{field}", tensor, shape, integers if field in INTEGERS else like)
            for (field, shape), tensor in parts
        )
    )
    return memory


def _checked(name: str, tensor: Any, shape: Shape, like: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {_describe(tensor)}; expected a tensor of shape {list(shape)}")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {list(shape)}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}; expected {like.dtype} on {like.device}, as the model is"
        )
    return tensor


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
