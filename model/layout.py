"""A session's whole state as one row of numbers, as the server keeps it."""

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.rows import Field, RowLayout
from dnc_serve.model.state import (
    ControllerHidden,
    DNCState,
    MemoryState,
    as_array,
    memory_shapes,
)


class StatePacking(nn.Module):
    """Between a `DNCState` and rows [B, S], in TorchScript too; the order of the row is that of `StateLayout`."""

    has_cell_state: Final[bool]
    num_layers: Final[int]
    num_memories: Final[int]
    depth: Final[int]
    hidden_size: Final[int]
    write_heads: Final[int]

    def __init__(self, config: DNCConfig, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.has_cell_state = config.rnn_type == "lstm"
        self.num_layers, self.num_memories = config.num_layers, config.num_memories
        self.depth, self.hidden_size = config.num_hidden_layers, config.hidden_size
        self.write_heads = config.write_heads
        self.memory_shapes = [list(shape) for shape in memory_shapes(config).values()]

    @torch.jit.export
    def pack(self, state: DNCState) -> Tensor:
        """The state as rows [B, S]."""
        pieces: list[Tensor] = []
        for layer in state.controller_hidden:
            if isinstance(layer, Tensor):
                pieces.append(layer.transpose(0, 1).flatten(1))
            else:
                pieces.append(layer[0].transpose(0, 1).flatten(1))
                pieces.append(layer[1].transpose(0, 1).flatten(1))
        pieces.append(state.read_vectors)
        for memory in state.memory:
            for field in memory:
                pieces.append(field.flatten(1))  # noqa: PERF401  TorchScript knows no such list
        return torch.cat(pieces, 1)

    @torch.jit.export
    def unpack(self, packed: Tensor) -> DNCState:
        """The state that rows [B, S] hold, as views into them."""
        rows = packed.size(0)
        pieces = packed.split_with_sizes(self.sizes, 1)
        next_piece = 0
        controller_hidden: list[ControllerHidden] = []
        for _ in range(self.num_layers):
            hidden = pieces[next_piece].view(rows, self.depth, self.hidden_size).transpose(0, 1)
            next_piece += 1
            layer: ControllerHidden = hidden
            if self.has_cell_state:
                cell = pieces[next_piece].view(rows, self.depth, self.hidden_size).transpose(0, 1)
                layer = (hidden, cell)
                next_piece += 1
            controller_hidden.append(layer)
        read_vectors = pieces[next_piece]
        next_piece += 1
        memories: list[MemoryState] = []
        for _ in range(self.num_memories):
            fields: list[Tensor] = []
            for shape in self.memory_shapes:
                fields.append(pieces[next_piece].unflatten(1, shape))  # type: ignore[no-untyped-call]
                next_piece += 1
            memories.append(MemoryState(fields[0], fields[1], fields[2], fields[3], fields[4], fields[5]))
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
        self.names = tuple(dict.fromkeys((*MemoryState._fields, *self.names)))
        self.packing = StatePacking(config, [field.size for field in self.fields])

    def pack(self, state: DNCState) -> Tensor:
        """The state as rows [B, S]."""
        return self.packing.pack(state)

    def unpack(self, packed: Tensor) -> DNCState:
        """The state that rows [B, S] hold, as views into them."""
        return self.packing.unpack(packed)

    def dump(self, row: "Tensor | np.ndarray[Any, Any]") -> dict[str, np.ndarray[Any, Any]]:
        """One session's row [S], as copies by name; the first axis counts memories, or layers of the controller.

        The memories' six are flattened as in the debug table: `memory` [memories, N*W], `link_matrix` [., K*N*N],
        `precedence` [., K*N], `read_weights` [., R*N], `write_weights` [., K*N], `usage_vector` [., N]; then
        `read_vectors` [1, R*W], `controller_hidden` [L, D*H] and, of an LSTM, `controller_cell`.
        """
        numbers = as_array(row) if isinstance(row, Tensor) else row
        if numbers.shape != (self.size,):
            raise ValueError(f"row has shape {list(numbers.shape)}; expected [{self.size}]")
        return {name: self.array(numbers, name).reshape(-1, self._size_of(name)) for name in self.names}

    def _size_of(self, name: str) -> int:
        return next(field.size for field in self.fields if field.name == name)
