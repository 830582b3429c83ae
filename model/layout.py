"""A session's whole state as one row of numbers, as the server keeps it."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.rows import Field, RowLayout
from dnc_serve.model.state import (
    INTEGERS,
    MEMORY_KINDS,
    ControllerHidden,
    DNCState,
    Memory,
    as_array,
    memory_of,
    memory_shapes,
    tensors_of,
)

# Of sparse memories; but not integers, of which a row has no view.
CHANGED_IN_PLACE = ("memory", "squared_norms", "sparse_links")


class StatePacking(nn.Module):
    """Between a `DNCState` and rows [B, S], in TorchScript too; the order of the row is that of `StateLayout`."""

    has_cell_state: Final[bool]
    num_layers: Final[int]
    num_memories: Final[int]
    memory_kind: Final[str]

    def __init__(self, config: DNCConfig, fields: Sequence[Field]) -> None:
        super().__init__()
        self.sizes = [field.size for field in fields]
        self.shapes = [list(field.shape) for field in fields]
        self.changed_in_place = [field.name in CHANGED_IN_PLACE for field in fields]
        self.has_cell_state = config.rnn_type == "lstm"
        self.num_layers, self.num_memories = config.num_layers, config.num_memories
        self.memory_kind = config.memory
        self.integers = [name in INTEGERS for name in memory_shapes(config)]

    @torch.jit.export
    def pack(self, state: DNCState) -> Tensor:
        """The state as rows [B, S]."""
        return torch.cat([field.flatten(1) for field in self.fields_of(state)], 1)

    @torch.jit.export
    def put(self, state: DNCState, packed: Tensor) -> Tensor:
        """`packed`, rows in which steps in place have changed the large tensors already, with the others as well."""
        pieces = packed.split_with_sizes(self.sizes, 1)
        for index, field in enumerate(self.fields_of(state)):
            if not self.changed_in_place[index]:
                pieces[index].copy_(field.flatten(1))
        return packed

    @torch.jit.export
    def unpack(self, packed: Tensor) -> DNCState:
        """The state that rows [B, S] hold, as views into them but for integers."""
        fields: list[Tensor] = []
        for index, piece in enumerate(packed.split_with_sizes(self.sizes, 1)):
            fields.append(piece.unflatten(1, self.shapes[index]))  # type: ignore[no-untyped-call]
        return self.state_of(fields)

    @torch.jit.export
    def fields_of(self, state: DNCState) -> list[Tensor]:
        """The tensors of a state, each [B, *shape], in the order of `StateLayout`; integers as floats of that value."""
        fields: list[Tensor] = []
        for layer in state.controller_hidden:
            if isinstance(layer, Tensor):
                fields.append(layer.transpose(0, 1))
            else:
                fields.append(layer[0].transpose(0, 1))
                fields.append(layer[1].transpose(0, 1))
        fields.append(state.read_vectors)
        for memory in state.memory:
            for field in tensors_of(memory):
                fields.append(field.to(state.read_vectors.dtype))  # noqa: PERF401  TorchScript knows no such list
        return fields

    @torch.jit.export
    def state_of(self, fields: list[Tensor]) -> DNCState:
        """The state that has these tensors."""
        at = 0
        controller_hidden: list[ControllerHidden] = []
        for _ in range(self.num_layers):
            layer: ControllerHidden = fields[at].transpose(0, 1)
            if self.has_cell_state:
                layer = (fields[at].transpose(0, 1), fields[at + 1].transpose(0, 1))
                at += 1
            controller_hidden.append(layer)
            at += 1
        read_vectors = fields[at]
        at += 1
        memories: list[Memory] = []
        for _ in range(self.num_memories):
            tensors: list[Tensor] = []
            for is_integer in self.integers:
                tensors.append(fields[at].to(torch.int32) if is_integer else fields[at])
                at += 1
            memories.append(memory_of(self.memory_kind, tensors))
        return DNCState(controller_hidden, memories, read_vectors)


class StateLayout(RowLayout):
    """Where each tensor of a DNC's state lies in its row of `size` numbers; a new session's are all zero.

    Controller state comes first, layer by layer, then the read vectors, then every memory: zeroing
    `row[experience_offset:]` is a reset of the experience.
    """

    experience_offset: int

    def __init__(self, config: DNCConfig) -> None:
        self.config = config
        controller_shape = (config.num_hidden_layers, config.hidden_size)
        fields: list[Field] = []
        for layer in range(config.num_layers):
            fields.append(Field(controller_shape, name="controller_hidden", part=layer))
            if config.rnn_type == "lstm":
                fields.append(Field(controller_shape, name="controller_cell", part=layer))
        fields.append(Field((config.read_size,), name="read_vectors"))
        for memory in range(config.num_memories):
            fields.extend(Field(shape, name=name, part=memory) for name, shape in memory_shapes(config).items())
        super().__init__(fields)
        self.experience_offset = next(field.offset for field in self.fields if field.name == "memory")
        # As the seed's debug table has them: memory first.
        self.names = tuple(dict.fromkeys((*MEMORY_KINDS[config.memory]._fields, *self.names)))
        self.packing = StatePacking(config, self.fields)

    def pack(self, state: DNCState) -> Tensor:
        """The state as rows [B, S]."""
        return self.packing.pack(state)

    def unpack(self, packed: Tensor) -> DNCState:
        """The state that rows [B, S] hold, as views into them but for integers."""
        return self.packing.unpack(packed)

    def dump(self, row: "Tensor | np.ndarray[Any, Any]") -> dict[str, np.ndarray[Any, Any]]:
        """One session's row [S], as copies by name; the first axis counts memories, or layers of the controller.

        The memories' fields are flattened as in the debug table; of a dense memory these are `memory` [memories, N*W],
        `link_matrix` [., K*N*N], `precedence` [., K*N], `read_weights` [., R*N], `write_weights` [., K*N],
        `usage_vector` [., N], and of a sparse one those of `SparseMemoryState` or `LinkedMemoryState`. Then come
        `read_vectors` [1, R*W], `controller_hidden` [L, D*H] and, of an LSTM, `controller_cell`.
        """
        numbers = as_array(row) if isinstance(row, Tensor) else row
        if numbers.shape != (self.size,):
            raise ValueError(f"row has shape {list(numbers.shape)}; expected [{self.size}]")
        return {name: self.array(numbers, name).reshape(-1, self._size_of(name)) for name in self.names}

    def _size_of(self, name: str) -> int:
        return next(field.size for field in self.fields if field.name == name)
