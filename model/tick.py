"""The module that a server runs: timesteps of a DNC for a tile of sessions, states as rows."""

import copy

import torch
from torch import Tensor, nn

from dnc_serve.model.controller import Controller
from dnc_serve.model.dnc import DNC
from dnc_serve.model.interface import InterfaceVector
from dnc_serve.model.layout import StateLayout
from dnc_serve.model.numerics import LEAST_ROWS
from dnc_serve.model.state import Memory, memory_shapes, tensors_of


class TickModule(nn.Module):
    """Steps packed states; what a row gets depends on that row alone. It can be scripted, frozen and exported.

    It holds a copy of the model, in which products over rows fewer than `least_rows` are filled up; 1 leaves them as
    they are, for programs whose number of rows is left open.
    """

    def __init__(self, dnc: DNC, least_rows: int = LEAST_ROWS) -> None:
        super().__init__()
        self.dnc = copy.deepcopy(dnc)
        for part in self.dnc.modules():
            if isinstance(part, Controller | InterfaceVector | DNC):
                part.least_rows = least_rows
        self.packing = StateLayout(dnc.config).packing
        self.memory_fields = list(memory_shapes(dnc.config))
        # Of a large memory, in which a timestep touches little, one copy is made for all timesteps.
        self.in_place = dnc.config.is_sparse

    def forward(self, inputs: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
        """From inputs [T, B, I] and states [B, S], outputs [T, B, O] and the states after them; changes neither."""
        outputs: list[Tensor] = []
        accesses: list[Memory] = []
        if self.in_place:
            packed = packed.clone()
        state = self.packing.unpack(packed)
        for x in inputs.unbind(0):
            accesses.clear()
            output, state = self.dnc.step_observed(x, state, True, accesses, self.in_place)
            outputs.append(output)
        after = self.packing.put(state, packed) if self.in_place else self.packing.pack(state)
        return torch.stack(outputs), after

    @torch.jit.export
    def trace_debug(self, inputs: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As `forward`, and every row's memory after each timestep's and layer's access.

        The dict has the fields of the memory, as `MemoryState`'s, each [T, L, B, ...]; of row b,
        `field[:, :, b].flatten(0, 1).flatten(1)` is what `DNC.forward` gives in debug mode.
        """
        state = self.packing.unpack(packed)
        outputs: list[Tensor] = []
        accesses: list[Memory] = []
        for x in inputs.unbind(0):
            output, state = self.dnc.step_observed(x, state, True, accesses, False)
            outputs.append(output)
        observed: dict[str, Tensor] = {}
        for index, name in enumerate(self.memory_fields):
            observed[name] = _stack([tensors_of(access)[index] for access in accesses], len(outputs))
        return torch.stack(outputs), self.packing.pack(state), observed

    @torch.jit.export
    def interface(self, packed: Tensor) -> dict[str, Tensor]:
        """What each layer's controller asked of its memory at the timestep that led to states [B, S].

        It is no part of the state, but follows from the controller's. The dict has the gates, read modes and strengths
        of the interface, each [L, B, ...]; the strengths of write and read heads apart.
        """
        state = self.packing.unpack(packed)
        asked: list[dict[str, Tensor]] = []
        for tower in self.dnc.towers:
            for controller in tower.controllers:  # type: ignore[union-attr]
                output = controller.output(state.controller_hidden[len(asked)])
                interface = tower.access.interface  # type: ignore[union-attr]
                asked.append(interface.asked(output))  # type: ignore
        return {name: torch.stack([layer[name] for layer in asked]) for name in asked[0]}


class StepModule(nn.Module):
    """A DNC as any model has to be: its state is a list of tensors [B, *shape], in the order of `StateLayout`."""

    def __init__(self, dnc: DNC) -> None:
        super().__init__()
        self.layout = StateLayout(dnc.config)
        # Products over few rows are not filled up: how many there are is left open.
        self.ticks = TickModule(dnc, least_rows=1)

    def initial_state(self, batch_size: int) -> list[Tensor]:
        """Zeros."""
        return [torch.zeros(batch_size, *field.shape, dtype=field.torch) for field in self.layout.fields]

    def step(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One timestep: x [B, I] to output [B, O]."""
        packing = self.ticks.packing
        output, after = self.ticks.dnc.step(x, packing.state_of(state))
        return output, packing.fields_of(after)


def _stack(accesses: list[Tensor], timesteps: int) -> Tensor:
    """What each of T*L accesses left, [B, ...], as [T, L, B, ...]."""
    stacked: Tensor = torch.stack(accesses).unflatten(0, [timesteps, len(accesses) // timesteps])  # type: ignore[no-untyped-call]
    return stacked
