"""What a DNC remembers between timesteps, and the legend of shapes used all over the package.

B sessions (batch rows), T timesteps, N memory slots, W word size, R read heads, K write heads, M = 1 + 2K read modes,
L layers, D hidden layers of each layer's controller, H hidden size, I input size, O output size; of sparse memories S
slots that a head reads, and Q links of a slot.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, List, NamedTuple, Tuple, Union  # noqa: UP035  TorchScript reads these annotations

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
        return self.map(lambda tensor: _moved(tensor, *args, **kwargs))

    def detach(self) -> "MemoryState":
        """The same values, cut from the graph that computed them."""
        return self.map(Tensor.detach)

    def rows(self, rows: slice | Tensor) -> "MemoryState":
        """Some batch rows, chosen by a slice or by a tensor of indices."""
        return self.map(lambda tensor: tensor[rows])


class SparseMemoryState(NamedTuple):
    """One sparse access memory: its words, when each was accessed last, and the few slots that were read.

    Integers are int32, of a size that a float32 can hold, as which they stand in a row. A slot whose weight is 0 stands
    for none.
    """

    memory: Tensor  # [B, N, W]
    squared_norms: Tensor  # [B, N], of the words: a search then passes over the memory once
    last_access: Tensor  # [B, N], the timestep at which a slot's weightings summed to more than a trifle; 0: never
    time: Tensor  # [B, 1], timesteps until now; brought down now and then, with `last_access`
    read_slots: Tensor  # [B, R, S]
    sparse_read_weights: Tensor  # [B, R, S], of these slots; all others' are 0

    def map(self, change: Callable[[Tensor], Tensor]) -> "SparseMemoryState":
        """The same state with `change` applied to each tensor."""
        return SparseMemoryState(*(change(tensor) for tensor in self))

    def to(self, *args: object, **kwargs: object) -> "SparseMemoryState":
        """As `Tensor.to`: another device or precision; integers stay what they are."""
        return self.map(lambda tensor: _moved(tensor, *args, **kwargs))

    def detach(self) -> "SparseMemoryState":
        """The same values, cut from the graph that computed them."""
        return self.map(Tensor.detach)

    def rows(self, rows: slice | Tensor) -> "SparseMemoryState":
        """Some batch rows, chosen by a slice or by a tensor of indices."""
        return self.map(lambda tensor: tensor[rows])


class LinkedMemoryState(NamedTuple):
    """A sparse access memory whose slots are linked in the order in which they were written, each to a few others."""

    memory: Tensor  # as of a SparseMemoryState, down to sparse_read_weights
    squared_norms: Tensor
    last_access: Tensor
    time: Tensor
    read_slots: Tensor
    sparse_read_weights: Tensor
    precedence_slots: Tensor  # [B, Q], the slots written last
    sparse_precedence: Tensor  # [B, Q], how much each of them was the last one written
    previous_slots: Tensor  # [B, N, Q]; row i: slots right after which slot i was written
    sparse_links: Tensor  # [B, N, Q], how much so
    next_slots: Tensor  # [B, N, Q]; row j: slots that were written right after slot j

    def map(self, change: Callable[[Tensor], Tensor]) -> "LinkedMemoryState":
        """The same state with `change` applied to each tensor."""
        return LinkedMemoryState(*(change(tensor) for tensor in self))

    def to(self, *args: object, **kwargs: object) -> "LinkedMemoryState":
        """As `Tensor.to`: another device or precision; integers stay what they are."""
        return self.map(lambda tensor: _moved(tensor, *args, **kwargs))

    def detach(self) -> "LinkedMemoryState":
        """The same values, cut from the graph that computed them."""
        return self.map(Tensor.detach)

    def rows(self, rows: slice | Tensor) -> "LinkedMemoryState":
        """Some batch rows, chosen by a slice or by a tensor of indices."""
        return self.map(lambda tensor: tensor[rows])


# TorchScript takes tuples of any name for plain ones, and gives the names back: see `memory_of`.
Tensors6 = Tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # noqa: UP006
Tensors11 = Tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # noqa: UP006
if TYPE_CHECKING:
    Memory = MemoryState | SparseMemoryState | LinkedMemoryState
else:
    Memory = Union[Tensors6, Tensors11]  # noqa: UP007

MEMORY_KINDS: dict[str, Any] = {
    "dense": MemoryState,
    "sparse": SparseMemoryState,
    "sparse_links": LinkedMemoryState,
}
INTEGERS = ("last_access", "time", "read_slots", "precedence_slots", "previous_slots", "next_slots")


def tensors_of(memory: Memory) -> List[Tensor]:  # noqa: UP006
    """A memory's tensors in the order of its fields, in TorchScript too."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return list(memory)
    if torch.jit.isinstance(memory, Tensors6):  # type: ignore[no-untyped-call]
        return [memory[0], memory[1], memory[2], memory[3], memory[4], memory[5]]
    assert torch.jit.isinstance(memory, Tensors11)  # type: ignore[no-untyped-call]
    t = memory
    return [t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10]]  # type: ignore[misc]


def memory_of(kind: str, t: List[Tensor]) -> Memory:  # noqa: UP006
    """The memory of a kind, as the config names it, that has these tensors."""
    if kind == "dense":
        return MemoryState(t[0], t[1], t[2], t[3], t[4], t[5])
    if kind == "sparse":
        return SparseMemoryState(t[0], t[1], t[2], t[3], t[4], t[5])
    return LinkedMemoryState(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10])


class DNCState(NamedTuple):
    """All that a DNC remembers; unpacks as the `dnc` package's (controller_hidden, memory, read_vectors)."""

    controller_hidden: List[ControllerHidden]  # noqa: UP006  L layers
    memory: List[Memory]  # noqa: UP006  one if shared by all layers, else L
    read_vectors: Tensor  # [B, R * W], of the last layer at the last timestep

    def to(self, *args: object, **kwargs: object) -> "DNCState":
        """As `Tensor.to`: another device or precision."""
        return _map(self, lambda tensor, _: _moved(tensor, *args, **kwargs))

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
        kinds = {kind._fields: kind for kind in MEMORY_KINDS.values()}
        memory = [kinds[memory._fields](*memory) for memory in state.memory]
        return cls(state.controller_hidden, memory, state.read_vectors)

    @property
    def batch_size(self) -> int:
        """B."""
        return self.read_vectors.size(0)


# With them, `torch.load` reads a saved state with `weights_only`, as it does by default.
torch.serialization.add_safe_globals([*MEMORY_KINDS.values(), DNCState])


def memory_shapes(config: DNCConfig) -> dict[str, tuple[int, ...]]:
    """Of each field of a memory's state, for one batch row."""
    slots, read, write = config.nr_cells, config.read_heads, config.write_heads
    if not config.is_sparse:
        return {
            "memory": (slots, config.cell_size),
            "link_matrix": (write, slots, slots),
            "precedence": (write, slots),
            "read_weights": (read, slots),
            "write_weights": (write, slots),
            "usage_vector": (slots,),
        }
    shapes: dict[str, tuple[int, ...]] = {
        "memory": (slots, config.cell_size),
        "squared_norms": (slots,),
        "last_access": (slots,),
        "time": (1,),
        "read_slots": (read, config.sparse_reads),
        "sparse_read_weights": (read, config.sparse_reads),
    }
    if config.memory == "sparse_links":
        links = config.temporal_reads
        shapes |= {"precedence_slots": (links,), "sparse_precedence": (links,)}
        shapes |= dict.fromkeys(("previous_slots", "sparse_links", "next_slots"), (slots, links))
    return shapes


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
        type(memories[0])(*(torch.cat(tensors) for tensors in zip(*memories, strict=True)))
        for memories in zip(*(state.memory for state in states), strict=True)
    ]
    return DNCState(hidden, memory, torch.cat([state.read_vectors for state in states]))


def _map(state: DNCState, change: Callable[[Tensor, int], Tensor]) -> DNCState:
    """`change(tensor, dimension of the batch)` applied to every tensor."""
    hidden: list[ControllerHidden] = [
        change(layer, 1) if isinstance(layer, Tensor) else (change(layer[0], 1), change(layer[1], 1))
        for layer in state.controller_hidden
    ]
    memory: list[Memory] = [memory.map(lambda tensor: change(tensor, 0)) for memory in state.memory]
    return DNCState(hidden, memory, change(state.read_vectors, 0))


def _moved(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
    """As `Tensor.to`, which would make floats of integers too."""
    if tensor.is_floating_point():
        return tensor.to(*args, **kwargs)  # type: ignore[call-overload, no-any-return]
    probe = torch.empty(0, device=tensor.device).to(*args, **kwargs)  # type: ignore[call-overload]
    return tensor.to(probe.device)
