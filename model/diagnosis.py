"""Which tensor turned infinite or NaN first."""

import torch
from torch import Tensor, nn

from dnc_serve.model.dnc import DNC
from dnc_serve.model.state import DNCState, MemoryState


def first_non_finite(model: DNC, inputs: Tensor, state: DNCState) -> str | None:
    """Replays inputs [T, B, I] from `state` and names the first tensor that is not finite, and its timestep."""
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name} is not finite"
    with torch.no_grad():
        for timestep, x in enumerate(inputs.unbind(0)):
            if not _finite(x):
                return f"timestep {timestep}: the input is not finite"
            output, state = model.step(x, state)
            for name, tensor in [*_named(state), ("the output", output)]:
                if not _finite(tensor):
                    return f"timestep {timestep}: {name} turned {_kind(tensor)}"
    return None


def first_non_finite_gradient(model: nn.Module) -> str:
    """Names the first parameter, in the model's order, whose gradient is not finite."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"the gradient of {name} turned {_kind(parameter.grad)}"
    return "the norm of the gradients overflowed"


def _named(state: DNCState) -> list[tuple[str, Tensor]]:
    """In the order in which a step computes them."""
    tensors: list[tuple[str, Tensor]] = []
    for layer, hidden in enumerate(state.controller_hidden):
        parts = [hidden] if isinstance(hidden, Tensor) else list(hidden)
        tensors += [(f"controller_hidden[{layer}][{part}]", tensor) for part, tensor in enumerate(parts)]
    order = ("usage_vector", "write_weights", "memory", "link_matrix", "precedence", "read_weights")
    assert set(order) == set(MemoryState._fields)
    for index, memory in enumerate(state.memory):
        names = order if isinstance(memory, MemoryState) else memory._fields
        tensors += [(f"memory[{index}].{name}", getattr(memory, name)) for name in names]
    return [*tensors, ("read_vectors", state.read_vectors)]


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _kind(tensor: Tensor) -> str:
    return "NaN" if bool(torch.isnan(tensor).any()) else "infinite"
