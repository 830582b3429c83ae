"""What a DNC remembers between timesteps, and the legend of shapes used all over the package.

B sessions (batch rows), T timesteps, N memory slots, W word size, R read heads, K write heads, M = 1 + 2K read modes,
L layers, D hidden layers of each layer's controller, H hidden size, I input size, O output size.
"""

from collections.abc import Callable
from typing import Any, List, NamedTuple, Tuple, Union  # noqa: UP035  TorchScript reads these annotations

import numpy as np
import torch
from torch import Tensor

from dnc_serve.model.config import DNCConfig

ControllerHidden = Union[Tensor, Tuple[Tensor, Tensor]]  # noqa: UP006, UP007
"""One layer's controller state: hidden and cell of an LSTM, else hidden alone; each [D, B, H]."""


class MemoryState(NamedTuple):
    """One memory: its words, and who wrote and read where, and in which order."""

    memory: Tensor  # [B, N, W]
    link_matrix: Tensor  # [B, K, N, N]; entry [i, j]: slot i was written right after slot j
    precedence: Tensor  # [B, K, N]; how much each slot was the last one written
    read_weights: Tensor  # [B, R, N]
    write_weights: Tensor  # [B, K, N]
    usage_vector: Tensor  # [B, N]

    def map(self, change: Callable[[Tensor], Tensor]) -> "MemoryState":
        """The same state with `change` applied to each tensor."""
        return MemoryState(*(change(tensor) for tensor in self))

    def to(self, *args: object, **kwargs: object) -> "MemoryState":
        """As `Tensor.to`: another device or precision."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))  # type: ignore[call-overload]

    def detach(self) -> "MemoryState":
        """The same values, cut from the graph that computed them."""
        return self.map(Tensor.detach)

    def rows(self, rows: slice | Tensor) -> "MemoryState":
        """Some batch rows, chosen by a slice or by a tensor of indices."""
        return self.map(lambda tensor: tensor[rows])


class DNCState(NamedTuple):
    """All that a DNC remembers; unpacks as the `dnc` package's (controller_hidden, memory, read_vectors)."""

    controller_hidden: List[ControllerHidden]  # noqa: UP006  L layers
    memory: List[MemoryState]  # noqa: UP006  one if shared by all layers, else L
    read_vectors: Tensor  # [B, R * W], of the last layer at the last timestep

    def to(self, *args: object, **kwargs: object) -> "DNCState":
        """As `Tensor.to`: another device or precision."""
        return _map(self, lambda tensor, _: tensor.to(*args, **kwargs))  # type: ignore[call-overload]

    def detach(self) -> "DNCState":
        """The same values, cut from the graph that computed them."""
        return _map(self, lambda tensor, _: tensor.detach())

    def rows(self, rows: slice | Tensor) -> "DNCState":
        """Some batch rows, chosen by a slice or by a tensor of indices: `state.rows(slice(3, 4))` is row 3 alone."""
        return _map(self, lambda tensor, batch: tensor[:, rows] if batch else tensor[rows])

    def reset_experience(self) -> "DNCState":
        """Controller state and read vectors kept, every memory zero; nothing of this state is changed."""
        return DNCState(self.controller_hidden, [memory.map(torch.zeros_like) for memory in self.memory], self[2])

    @classmethod
    def of(cls, state: Any) -> "DNCState":
        """The state that a scripted model returned, which has the same fields and nothing of what is defined here."""
        return cls(state.controller_hidden, [MemoryState(*memory) for memory in state.memory], state.read_vectors)

    @property
    def batch_size(self) -> int:
        """B."""
        return self.read_vectors.size(0)


# With them, `torch.load` reads a saved state with `weights_only`, as it does by default.
torch.serialization.add_safe_globals([MemoryState, DNCState])


def memory_shapes(config: DNCConfig) -> dict[str, tuple[int, ...]]:
    """Of each field of a `MemoryState`, for one batch row."""
    slots, read, write = config.nr_cells, config.read_heads, config.write_heads
    return {
        "memory": (slots, config.cell_size),
        "link_matrix": (write, slots, slots),
        "precedence": (write, slots),
        "read_weights": (read, slots),
        "write_weights": (write, slots),
        "usage_vector": (slots,),
    }


def as_array(tensor: Tensor) -> "np.ndarray[Any, Any]":
    """The values for NumPy, which has no bfloat16: float32 holds each of its numbers."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def concatenate(states: "list[DNCState]") -> DNCState:
    """One state with the rows of all, in order."""
    hidden: list[ControllerHidden] = []
    for layers in zip(*(state.controller_hidden for state in states), strict=True):
        if isinstance(layers[0], Tensor):
            hidden.append(torch.cat(layers, 1))
        else:
            hidden.append((torch.cat([h for h, _ in layers], 1), torch.cat([c for _, c in layers], 1)))
    memory = [
        MemoryState(*(torch.cat(tensors) for tensors in zip(*memories, strict=True)))
        for memories in zip(*(state.memory for state in states), strict=True)
    ]
    return DNCState(hidden, memory, torch.cat([state.read_vectors for state in states]))


def _map(state: DNCState, change: Callable[[Tensor, int], Tensor]) -> DNCState:
    """`change(tensor, dimension of the batch)` applied to every tensor."""
    hidden: list[ControllerHidden] = [
        change(layer, 1) if isinstance(layer, Tensor) else (change(layer[0], 1), change(layer[1], 1))
        for layer in state.controller_hidden
    ]
    memory = [memory.map(lambda tensor: change(tensor, 0)) for memory in state.memory]
    return DNCState(hidden, memory, change(state.read_vectors, 0))
