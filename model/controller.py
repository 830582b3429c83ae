"""The recurrent network that decides, at each timestep, what to output and what to ask of the memory."""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.numerics import filled_up
from dnc_serve.model.state import ControllerHidden

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
FORGET_BIAS = 1.0


class Cell(nn.Module):
    """One hidden layer for one timestep: an LSTM, GRU or plain recurrent cell with the parameters of torch's own.

    The LSTM's forget gate is biased by 1, as in DeepMind's code: in its bias at the start, or, without a trained bias,
    in a constant one.
    """

    kind: Final[str]

    def __init__(self, config: DNCConfig, input_size: int) -> None:
        super().__init__()
        self.kind = config.nonlinearity if config.rnn_type == "rnn" else config.rnn_type
        size = config.hidden_size
        rows = GATES[config.rnn_type] * size
        bound = 1 / math.sqrt(size)
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(rows, size).uniform_(-bound, bound))
        bias_ih, bias_hh = torch.zeros(rows), torch.zeros(rows)
        if config.bias:
            bias_ih.uniform_(-bound, bound)
            bias_hh.uniform_(-bound, bound)
        if config.rnn_type == "lstm":
            bias_ih[size : 2 * size] += FORGET_BIAS
        if config.bias:
            self.bias_ih, self.bias_hh = nn.Parameter(bias_ih), nn.Parameter(bias_hh)
        else:
            self.register_buffer("bias_ih", bias_ih)
            self.register_buffer("bias_hh", bias_hh)

    def forward(self, features: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """The next hidden and cell state [B, H]; a network that has no cell state returns the one it was given."""
        if self.kind == "lstm":
            return torch.lstm_cell(features, (hidden, cell), self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if self.kind == "gru":
            hidden = torch.gru_cell(features, hidden, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        elif self.kind == "tanh":
            hidden = torch.rnn_tanh_cell(features, hidden, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        else:
            hidden = torch.rnn_relu_cell(features, hidden, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return hidden, cell


class Controller(nn.Module):
    """One layer's recurrent network, `num_hidden_layers` deep."""

    has_cell_state: Final[bool]
    clip: Final[float]
    clip_output: Final[bool]
    clip_hidden: Final[bool]
    clip_cell: Final[bool]
    dropout: Final[float]
    least_rows: int

    def __init__(self, config: DNCConfig, input_size: int) -> None:
        super().__init__()
        self.has_cell_state = config.rnn_type == "lstm"
        self.dropout = config.dropout
        self.least_rows = 1
        self.clip = config.clip
        everything = config.clip > 0 and config.clip_scope == "all"
        # A product of a sigmoid and a tanh, or a tanh, is in [-1, 1] already.
        bounded = config.rnn_type == "lstm" or (config.rnn_type == "rnn" and config.nonlinearity == "tanh")
        needed = config.clip > 0 and not (bounded and config.clip >= 1)
        self.clip_hidden = everything and needed
        self.clip_output = needed and not everything
        self.clip_cell = everything and self.has_cell_state
        sizes = [input_size] + [config.hidden_size] * (config.num_hidden_layers - 1)
        self.cells = nn.ModuleList(Cell(config, size) for size in sizes)

    def forward(self, features: Tensor, hidden: ControllerHidden) -> tuple[Tensor, ControllerHidden]:
        """From features [B, F] and the previous state [D, B, H], the output [B, H] and the next state.

        Clipping comes after all hidden layers have stepped: they see each other unclipped.
        """
        if isinstance(hidden, Tensor):
            hiddens, cells = hidden, hidden
        else:
            hiddens, cells = hidden
        rows = features.size(0)
        if rows < self.least_rows:
            features = filled_up(features, self.least_rows)
            hiddens, cells = filled_up(hiddens, self.least_rows), filled_up(cells, self.least_rows)
        next_hiddens: list[Tensor] = []
        next_cells: list[Tensor] = []
        depth = len(self.cells)
        for index, step in enumerate(self.cells):
            features, cell = step(features, hiddens[index], cells[index])
            if not torch.jit.is_scripting():  # type: ignore[attr-defined]
                features, cell = features.to(hiddens.dtype), cell.to(hiddens.dtype)  # autocast may have chosen another
            next_hiddens.append(features)
            next_cells.append(cell)
            if self.dropout > 0 and index < depth - 1:
                features = dropout(features, self.dropout, self.training)

        hiddens = _stack(next_hiddens)[:, :rows] if rows < self.least_rows else _stack(next_hiddens)
        if self.clip_hidden:
            hiddens = hiddens.clamp(-self.clip, self.clip)
        output = self.output(hiddens)
        state: ControllerHidden = hiddens
        if self.has_cell_state:
            cells = _stack(next_cells)[:, :rows] if rows < self.least_rows else _stack(next_cells)
            if self.clip_cell:
                cells = cells.clamp(-self.clip, self.clip)
            state = (hiddens, cells)
        return output, state

    @torch.jit.export
    def output(self, hidden: ControllerHidden) -> Tensor:
        """The output [B, H] of the timestep that led to a state."""
        hiddens = hidden if isinstance(hidden, Tensor) else hidden[0]
        output = hiddens[len(self.cells) - 1]
        if self.clip_output:
            output = output.clamp(-self.clip, self.clip)
        return output


def _stack(layers: list[Tensor]) -> Tensor:
    """[B, H] of each hidden layer to [D, B, H]; a single one need not be copied."""
    return layers[0].unsqueeze(0) if len(layers) == 1 else torch.stack(layers)
