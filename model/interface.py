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


def interface_sections(config: DNCConfig) -> dict[str, int]:
    """The parts of the interface vector in their order, and how many numbers each has; heads run slowest in each.

    Parts with the same activation are neighbours, so that it is applied to all of them at once.
    """
    heads, words = config.write_heads, config.write_heads * config.cell_size
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


class InterfaceLayer(nn.Module):
    """Turns a controller's output [B, H] into an `Interface`: one linear layer, or ten of the same function."""

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
        read, write, words = config.read_heads, config.write_heads, config.write_heads * config.cell_size
        self.parts = [2 * words + config.read_size, write + read, words + read + 2 * write, read * config.read_modes]
        self.key_parts = [words + config.read_size, words]
        self.gate_parts = [words, read, write, write]
        if self.independent:
            self.linears = nn.ModuleDict({name: nn.Linear(config.hidden_size, n) for name, n in self.sections.items()})
        else:
            self.linear = nn.Linear(config.hidden_size, sum(self.sections.values()))

    def forward(self, controller_output: Tensor) -> Interface:
        """[B, H] to the parts of the interface vector."""
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
        vectors, strengths, gates, modes = vector.split_with_sizes(self.parts, 1)
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
