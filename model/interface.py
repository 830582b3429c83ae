"""What the controller asks of its memory at a timestep."""

from typing import Final, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.numerics import filled_up


class Interface(NamedTuple):
    """The interface vector ξ_t, taken apart, each part in its range; write heads come before read heads."""

    keys: Tensor  # [B, K + R, W]
    strengths: Tensor  # [B, K + R], at least 0
    write_vectors: Tensor  # [B, K, W]
    erase_vectors: Tensor  # [B, K, W], in [0, 1]
    free_gates: Tensor  # [B, R], in [0, 1]
    allocation_gates: Tensor  # [B, K], in [0, 1]
    write_gates: Tensor  # [B, K], in [0, 1]
    read_modes: Tensor  # [B, R, M], in the simplex


class SparseInterface(NamedTuple):
    """What is asked of a sparse memory: one write head, which has no key, and no gate that frees a slot."""

    read_keys: Tensor  # [B, R, W]
    read_strengths: Tensor  # [B, R], at least 0
    write_vector: Tensor  # [B, W]
    allocation_gate: Tensor  # [B, 1], in [0, 1]: 1 - γ of the paper
    write_gate: Tensor  # [B, 1], in [0, 1]: α of the paper
    read_modes: Tensor  # [B, R, M], in the simplex; [B, R, 0] where there are no links


def interface_sections(config: DNCConfig) -> dict[str, int]:
    """The parts of the interface vector in their order, and how many numbers each has; heads run slowest in each.

    Parts with the same activation are neighbours, so that it is applied to all of them at once.
    """
    heads, words = config.write_heads, config.write_heads * config.cell_size
    if config.is_sparse:
        sections = {
            "read_keys": config.read_size,
            "write_vectors": words,
            "read_strengths": config.read_heads,
            "allocation_gates": heads,
            "write_gates": heads,
        }
        modes = {"read_modes": config.read_heads * config.read_modes} if config.read_modes > 1 else {}
        return sections | modes
    return {
        "write_keys": words,
        "read_keys": config.read_size,
        "write_vectors": words,
        "write_strengths": heads,
        "read_strengths": config.read_heads,
        "erase_vectors": words,
        "free_gates": config.read_heads,
        "allocation_gates": heads,
        "write_gates": heads,
        "read_modes": config.read_heads * config.read_modes,
    }


class InterfaceVector(nn.Module):
    """Turns a controller's output [B, H] into the interface vector: one linear layer, or one for each of its parts."""

    independent: Final[bool]
    squash_keys: Final[bool]
    least_rows: int

    def __init__(self, config: DNCConfig) -> None:
        super().__init__()
        self.independent = config.independent_linears
        self.least_rows = 1
        self.squash_keys = config.key_activation == "tanh"
        self.write_heads, self.read_heads = config.write_heads, config.read_heads
        self.cell_size, self.read_modes = config.cell_size, config.read_modes
        self.sections = interface_sections(config)
        if self.independent:
            self.linears = nn.ModuleDict({name: nn.Linear(config.hidden_size, n) for name, n in self.sections.items()})
        else:
            self.linear = nn.Linear(config.hidden_size, sum(self.sections.values()))

    def vector(self, controller_output: Tensor) -> Tensor:
        """[B, H] to [B, numbers], as the sections lie."""
        rows = controller_output.size(0)
        if rows < self.least_rows:
            controller_output = filled_up(controller_output, self.least_rows)
        if self.independent:
            vector = torch.cat([layer(controller_output) for layer in self.linears.values()], 1)
        else:
            vector = self.linear(controller_output)
        if rows < self.least_rows:
            vector = vector[:rows]
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            vector = vector.to(controller_output.dtype)  # autocast may have chosen another
        return vector

    def section(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight [numbers, H] and bias [numbers] of one part, as views to read or, detached, to write through."""
        if name not in self.sections:
            raise ValueError(f"name is {name!r}; expected one of {', '.join(self.sections)}")
        if self.independent:
            layer = cast(nn.Linear, self.linears[name])
            return layer.weight, layer.bias
        start = sum(list(self.sections.values())[: list(self.sections).index(name)])
        rows = slice(start, start + self.sections[name])
        return self.linear.weight[rows], self.linear.bias[rows]


class InterfaceLayer(InterfaceVector):
    """Turns a controller's output [B, H] into an `Interface`."""

    def __init__(self, config: DNCConfig) -> None:
        super().__init__(config)
        read, write, words = config.read_heads, config.write_heads, config.write_heads * config.cell_size
        self.parts = [2 * words + config.read_size, write + read, words + read + 2 * write, read * config.read_modes]
        self.key_parts = [words + config.read_size, words]
        self.gate_parts = [words, read, write, write]

    def forward(self, controller_output: Tensor) -> Interface:
        """[B, H] to the parts of the interface vector."""
        rows = controller_output.size(0)
        vectors, strengths, gates, modes = self.vector(controller_output).split_with_sizes(self.parts, 1)
        if self.squash_keys:
            vectors = torch.tanh(vectors)
        keys, write_vectors = vectors.split_with_sizes(self.key_parts, 1)
        erase_vectors, free_gates, allocation_gates, write_gates = torch.sigmoid(gates).split_with_sizes(
            self.gate_parts, 1
        )
        return Interface(
            keys.view(rows, self.write_heads + self.read_heads, self.cell_size),
            softplus(strengths),
            write_vectors.view(rows, self.write_heads, self.cell_size),
            erase_vectors.view(rows, self.write_heads, self.cell_size),
            free_gates,
            allocation_gates,
            write_gates,
            torch.softmax(modes.view(rows, self.read_heads, self.read_modes), 2),
        )

    @torch.jit.export
    def asked(self, controller_output: Tensor) -> dict[str, Tensor]:
        """What is no vector of the interface, by name: gates, read modes, and strengths of write and read heads."""
        interface = self.forward(controller_output)
        return {
            "allocation_gates": interface.allocation_gates,
            "write_gates": interface.write_gates,
            "free_gates": interface.free_gates,
            "read_modes": interface.read_modes,
            "write_strengths": interface.strengths[:, : self.write_heads],
            "read_strengths": interface.strengths[:, self.write_heads :],
        }


class SparseInterfaceLayer(InterfaceVector):
    """Turns a controller's output [B, H] into a `SparseInterface`."""

    def __init__(self, config: DNCConfig) -> None:
        super().__init__(config)
        read = config.read_heads
        self.modes = config.read_modes if config.read_modes > 1 else 0  # a single one is nothing to choose
        self.parts = [config.read_size + config.cell_size, read, 2, read * self.modes]
        self.key_parts = [config.read_size, config.cell_size]

    def forward(self, controller_output: Tensor) -> SparseInterface:
        """[B, H] to the parts of the interface vector."""
        rows = controller_output.size(0)
        vectors, strengths, gates, modes = self.vector(controller_output).split_with_sizes(self.parts, 1)
        if self.squash_keys:
            vectors = torch.tanh(vectors)
        keys, write_vector = vectors.split_with_sizes(self.key_parts, 1)
        allocation_gate, write_gate = torch.sigmoid(gates).split_with_sizes([1, 1], 1)
        return SparseInterface(
            keys.view(rows, self.read_heads, self.cell_size),
            softplus(strengths),
            write_vector,
            allocation_gate,
            write_gate,
            torch.softmax(modes.view(rows, self.read_heads, self.modes), 2),
        )

    @torch.jit.export
    def asked(self, controller_output: Tensor) -> dict[str, Tensor]:
        """What is no vector of the interface, by name: gates, read modes and strengths."""
        interface = self.forward(controller_output)
        asked = {
            "allocation_gates": interface.allocation_gate,
            "write_gates": interface.write_gate,
            "read_strengths": interface.read_strengths,
        }
        if self.modes > 0:
            asked["read_modes"] = interface.read_modes
        return asked
