"""The Differentiable Neural Computer: controllers, memory, and the one step that all else is built on."""

import inspect
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Final, Optional, cast

import torch
from torch import Tensor, nn

from dnc_serve.model import sequences
from dnc_serve.model.config import DNCConfig, as_flag, as_whole, unknown_names
from dnc_serve.model.controller import Cell, Controller
from dnc_serve.model.interface import InterfaceVector
from dnc_serve.model.memory import MemoryAccess
from dnc_serve.model.numerics import filled_up
from dnc_serve.model.sparse_access import SparseAccess
from dnc_serve.model.sparse_links import LinkedSparseAccess
from dnc_serve.model.state import (
    INTEGERS,
    ControllerHidden,
    DNCState,
    Memory,
    memory_of,
    memory_shapes,
    tensors_of,
)

ACCESSES: dict[str, type[MemoryAccess | SparseAccess]] = {
    "dense": MemoryAccess,
    "sparse": SparseAccess,
    "sparse_links": LinkedSparseAccess,
}


class Tower(nn.Module):
    """Controllers, one above the other, and the memory that each of them accesses in its turn."""

    def __init__(self, config: DNCConfig, layers: Iterable[int]) -> None:
        super().__init__()
        first, above = config.input_size + config.read_size, config.hidden_size + config.read_size
        self.controllers = nn.ModuleList(Controller(config, above if layer else first) for layer in layers)
        self.access = ACCESSES[config.memory](config)


class DNC(nn.Module):
    """A recurrent network with an external memory, by the maths of Graves et al., Nature 2016, and DeepMind's code.

    Its arguments are those of the `dnc` package; `output_size`, `write_heads` and the options after them are new (see
    `DNCConfig`). `step` is the whole model for one timestep, a pure function; `unroll` and `forward` repeat it. All
    three compile with `torch.jit.script(dnc)`.

    `gpu_id` (the number of a CUDA device, -1 for the CPU) and `device` say where parameters start; `.to()` and
    `.double()` move them as any module's. `share_memory_between_layers` is a synonym of `share_memory`.

    Raises ValueError or TypeError that names the argument, its value and the allowed range.
    """

    num_layers: Final[int]
    num_hidden_layers: Final[int]
    hidden_size: Final[int]
    nr_cells: Final[int]
    read_heads: Final[int]
    write_heads: Final[int]
    cell_size: Final[int]
    memory_kind: Final[str]
    has_cell_state: Final[bool]
    clip_result: Final[float]
    batch_first: Final[bool]
    feed_reads_at_once: Final[bool]
    like: Tensor
    least_rows: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        rnn_type: str = "lstm",
        num_layers: int = 1,
        num_hidden_layers: int = 2,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0,
        bidirectional: bool = False,
        nr_cells: int = 5,
        read_heads: int = 2,
        cell_size: int = 10,
        nonlinearity: str = "tanh",
        gpu_id: int = -1,
        independent_linears: bool = False,
        share_memory: bool = True,
        debug: bool = False,
        clip: float = 20,
        device: torch.device | str | None = None,
        share_memory_between_layers: bool | None = None,
        output_size: int | None = None,
        write_heads: int = 1,
        **options: Any,
    ) -> None:
        if bidirectional:
            raise ValueError(
                "bidirectional is True; expected False: the backward direction starts from the end of a sequence, and "
                "a session, whose inputs arrive over time, has no end to start from"
            )
        as_flag("bidirectional", bidirectional)
        expected = "-1 for the CPU, or the number of a CUDA device"
        gpu_id = as_whole("gpu_id", gpu_id, expected)
        if gpu_id < -1:
            raise ValueError(f"gpu_id is {gpu_id}; expected {expected}")
        arguments = [name for name in inspect.signature(DNC).parameters if name != "options"]
        known = list(dict.fromkeys([*arguments, *(field.name for field in fields(DNCConfig))]))
        if unknown := unknown_names(options, known):
            raise TypeError(f"DNC {' and '.join(unknown)}; its arguments are {', '.join(known)}")
        super().__init__()
        self.config = DNCConfig(
            input_size=input_size,
            hidden_size=hidden_size,
            output_size=output_size,
            rnn_type=rnn_type,
            num_layers=num_layers,
            num_hidden_layers=num_hidden_layers,
            bias=bias,
            dropout=dropout,
            nr_cells=nr_cells,
            read_heads=read_heads,
            write_heads=write_heads,
            cell_size=cell_size,
            nonlinearity=nonlinearity,
            independent_linears=independent_linears,
            share_memory=share_memory if share_memory_between_layers is None else share_memory_between_layers,
            clip=clip,
            **options,
        )
        config = self.config
        self.batch_first, self.debug = as_flag("batch_first", batch_first), as_flag("debug", debug)
        self.num_layers, self.num_hidden_layers = config.num_layers, config.num_hidden_layers
        self.hidden_size, self.nr_cells, self.cell_size = config.hidden_size, config.nr_cells, config.cell_size
        self.read_heads, self.write_heads = config.read_heads, config.write_heads
        self.has_cell_state = config.rnn_type == "lstm"
        self.clip_result = config.clip if config.clip_scope == "all" else 0.0
        self.memory_kind = config.memory
        shapes = memory_shapes(config)
        self.memory_shapes = [list(shape) for shape in shapes.values()]
        self.memory_integers = [name in INTEGERS for name in shapes]
        # Where and how precise states are: `.to()` takes it along, and no adapter or quantisation replaces it.
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.least_rows = 1
        self.feed_reads_at_once = config.read_feedback == "timestep"

        layers = range(config.num_layers)
        self.towers = nn.ModuleList(
            [Tower(config, layers)] if config.share_memory else [Tower(config, [layer]) for layer in layers]
        )
        self.output = nn.Linear(config.hidden_size + config.read_size, config.outputs)
        nn.init.orthogonal_(self.output.weight)
        if device is None and gpu_id >= 0:
            device = f"cuda:{gpu_id}"
        if device is not None:
            self.to(device)

    @classmethod
    def from_config(cls, config: DNCConfig, **placement: Any) -> "DNC":
        """A DNC, freshly initialised, of these sizes and options; `placement`: batch_first, debug, device, gpu_id."""
        return cls(**config.to_dict(), **placement)

    def extra_repr(self) -> str:
        """The sizes and options, for `print(dnc)`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config.to_dict().items())

    def interfaces(self) -> list[InterfaceVector]:
        """Each memory's interface layer; its `section(name)` gives a part's weight and bias."""
        return [cast(Tower, tower).access.interface for tower in self.towers]

    def cells(self) -> list[list[Cell]]:
        """The recurrent cells of each layer, the hidden layer next to the input first."""
        controllers = [controller for tower in self.towers for controller in cast(Tower, tower).controllers]
        return [[cast(Cell, cell) for cell in cast(Controller, controller).cells] for controller in controllers]

    @torch.jit.export
    def initial_state(self, batch_size: int) -> DNCState:
        """The state at a session's start: all zeros, where the parameters are and as precise."""
        like = self.like
        hidden: list[ControllerHidden] = []
        for _ in range(self.num_layers):
            shape = [self.num_hidden_layers, batch_size, self.hidden_size]
            layer: ControllerHidden = like.new_zeros(shape)
            if self.has_cell_state:
                layer = (like.new_zeros(shape), like.new_zeros(shape))
            hidden.append(layer)
        memories: list[Memory] = []
        for _ in range(len(self.towers)):
            fields: list[Tensor] = []
            for index, shape in enumerate(self.memory_shapes):
                # TorchScript doesn't unpack lists.
                field = like.new_zeros([batch_size] + shape)  # noqa: RUF005
                fields.append(field.to(torch.int32) if self.memory_integers[index] else field)
            memories.append(memory_of(self.memory_kind, fields))
        return DNCState(hidden, memories, like.new_zeros([batch_size, self.read_heads * self.cell_size]))

    @torch.jit.export
    def step(self, x: Tensor, state: DNCState, pass_through_memory: bool = True) -> tuple[Tensor, DNCState]:
        """One timestep: from inputs [B, I] and the previous state, the outputs [B, O] and the next state.

        Without `pass_through_memory` only the controller moves: memory and read vectors stay as they were.
        """
        accesses: list[Memory] = []
        return self.step_observed(x, state, pass_through_memory, accesses, False)

    @torch.jit.export
    def step_observed(
        self, x: Tensor, state: DNCState, pass_through_memory: bool, accesses: list[Memory], in_place: bool = False
    ) -> tuple[Tensor, DNCState]:
        """`step`, which also appends to `accesses` the memory as each layer's access left it, layer by layer.

        For who owns the state and needs no gradient, `in_place` changes the large tensors of a sparse memory where they
        are; those of earlier accesses then change with them.
        """
        read_vectors = state.read_vectors
        controller_hidden: list[ControllerHidden] = []
        memories: list[Memory] = []
        features = torch.cat((x, read_vectors), 1)
        for index, tower in enumerate(self.towers):
            memory = state.memory[index]
            if torch.jit.is_scripting():  # type: ignore[attr-defined]
                memory = memory_of(self.memory_kind, tensors_of(memory))
            for controller in tower.controllers:  # type: ignore[union-attr]
                output, hidden = controller(features, state.controller_hidden[len(controller_hidden)])
                controller_hidden.append(hidden)
                if pass_through_memory:
                    read_vectors, memory = tower.access(output, memory, in_place)  # type: ignore[operator]
                accesses.append(memory)
                features = torch.cat((output, read_vectors), 1)
            memories.append(memory)
        rows = features.size(0)
        if rows < self.least_rows:
            features = filled_up(features, self.least_rows)
        result = self.output(features)
        if rows < self.least_rows:
            result = result[:rows]
        if self.clip_result > 0:
            result = result.clamp(-self.clip_result, self.clip_result)
        return result, DNCState(controller_hidden, memories, read_vectors)

    @torch.jit.export
    def unroll(self, inputs: Tensor, state: DNCState, pass_through_memory: bool = True) -> tuple[Tensor, DNCState]:
        """Many timesteps: from inputs [T, B, I], T at least 1, the outputs [T, B, O] and the last state."""
        accesses: list[Memory] = []
        outputs: list[Tensor] = []
        given_reads = state.read_vectors
        for x in inputs.unbind(0):
            accesses.clear()
            if not self.feed_reads_at_once:
                state = DNCState(state.controller_hidden, state.memory, given_reads)
            output, state = self.step_observed(x, state, pass_through_memory, accesses, False)
            outputs.append(output)
        return torch.stack(outputs), state

    def forward(
        self,
        input: Tensor,
        hidden: Optional[DNCState] = None,  # noqa: UP045  TorchScript's spelling
        reset_experience: bool = False,
        pass_through_memory: bool = True,
    ) -> tuple[Tensor, DNCState]:
        """Runs a batch of sequences from `hidden`, or from zeros, with the calling convention of the `dnc` package.

        `input` is [B, T, I] ([T, B, I] without `batch_first`), or a PackedSequence, whose rows each end in the state as
        of their own last timestep; outputs have the same layout. `hidden` is None, or (controller_hidden, memory,
        read_vectors), each of which may be None; memory also as a dict or a list of dicts. `reset_experience` zeroes
        every memory first and keeps controller state and read vectors. With `debug`, a third result: what
        batch row 0 had in memory after every access, see `sequences.debug_table`.

        Raises ValueError or TypeError that names what doesn't fit, as it is and as it should be.
        """
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            state = self.initial_state(input.size(0 if self.batch_first else 1)) if hidden is None else hidden
            if reset_experience:
                zeros = self.initial_state(state.read_vectors.size(0))
                state = DNCState(state.controller_hidden, zeros.memory, state.read_vectors)
            inputs = input.transpose(0, 1) if self.batch_first else input
            outputs, state = self.unroll(inputs, state, pass_through_memory)
            return outputs.transpose(0, 1) if self.batch_first else outputs, state
        return self._forward_eager(input, hidden, reset_experience, pass_through_memory)

    @torch.jit.unused
    def _forward_eager(
        self, input: Any, hidden: Any, reset_experience: bool, pass_through_memory: bool
    ) -> tuple[Tensor, DNCState]:  # and, with debug, a third, for which TorchScript has no type
        return sequences.run(self, input, hidden, reset_experience, pass_through_memory)  # type: ignore[no-any-return]
