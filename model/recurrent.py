"""torch.nn's own recurrent modules, with their state in the open."""

from typing import Any

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """An `nn.LSTM`, `nn.GRU` or `nn.RNN` that goes forward: state hidden and, of an LSTM, cell, each [B, layers, H]."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        if module.bidirectional:
            raise ValueError("a bidirectional module reads its input to the end first; expected one that goes forward")
        self.module = module
        self.input_size = module.input_size
        self.is_lstm = isinstance(module, nn.LSTM)

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Zeros."""
        module = self.module
        shapes = {"hidden": module.proj_size or module.hidden_size}
        if self.is_lstm:
            shapes["cell"] = module.hidden_size
        dtype = next(module.parameters()).dtype
        return {name: torch.zeros(batch_size, module.num_layers, size, dtype=dtype) for name, size in shapes.items()}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, I] to output [B, H]."""
        before: Any = tuple(tensor.transpose(0, 1).contiguous() for tensor in state.values())
        time = 1 if self.module.batch_first else 0
        output, after = self.module(x.unsqueeze(time), before if self.is_lstm else before[0])
        parts = after if self.is_lstm else (after,)
        return output.squeeze(time), {name: part.transpose(0, 1) for name, part in zip(state, parts, strict=True)}


class RecurrentCell(nn.Module):
    """An `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell`: state hidden and, of an LSTM, cell, each [B, H]."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.module = cell
        self.input_size = cell.input_size
        self.is_lstm = isinstance(cell, nn.LSTMCell)

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Zeros."""
        names = ("hidden", "cell") if self.is_lstm else ("hidden",)
        dtype = self.module.weight_ih.dtype
        return {name: torch.zeros(batch_size, self.module.hidden_size, dtype=dtype) for name in names}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, I] to output [B, H]."""
        if self.is_lstm:
            hidden, cell = self.module(x, (state["hidden"], state["cell"]))
            return hidden, {"hidden": hidden, "cell": cell}
        hidden = self.module(x, state["hidden"])
        return hidden, {"hidden": hidden}


def of_torch(module: nn.Module) -> nn.Module | None:
    """One of torch's own with `initial_state` and `step`; None for any other module."""
    if isinstance(module, nn.RNNBase):
        return Recurrent(module)
    return RecurrentCell(module) if isinstance(module, nn.RNNCellBase) else None
