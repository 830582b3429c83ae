"""The controller's cells: from gates, before their activation, to the next hidden state."""

from dnc_serve.model.kernel.arithmetic import clamped, sigmoid, tanh
from dnc_serve.model.kernel.lanes import LANES, at_least, fma, inlined, like
from dnc_serve.model.kernel.pointers import at, part, put

LSTM, GRU, RNN_TANH, RNN_RELU = range(4)
# The columns of a cell's product, in units of H. A GRU's new gate takes two: what comes from the input, and what comes
# from the hidden state, which the reset gate lets through.
GATES = {LSTM: 4, GRU: 4, RNN_TANH: 1, RNN_RELU: 1}


@inlined
def step_cell(kind, gates, cell, previous, hidden, size, clip):
    """One hidden layer [H]: writes `hidden`, and an LSTM's cell state in place, clipped to ±clip unless clip is 0."""
    for j in range(0, size, LANES):
        first = part(gates, j, size)
        if kind == LSTM:  # c = σ(f) c + σ(i) tanh(g), h = σ(o) tanh(c)
            kept = sigmoid(part(at(gates, size), j, size)) * part(cell, j, size)
            state = fma(sigmoid(first), tanh(part(at(gates, 2 * size), j, size)), kept)
            put(hidden, j, size, sigmoid(part(at(gates, 3 * size), j, size)) * tanh(state))
            put(cell, j, size, clamped(state, clip) if clip > 0 else state)
        elif kind == GRU:  # n = tanh(n_x + σ(r) n_h), h = n + σ(z) (h - n)
            new = tanh(fma(sigmoid(first), part(at(gates, 3 * size), j, size), part(at(gates, 2 * size), j, size)))
            update = sigmoid(part(at(gates, size), j, size))
            put(hidden, j, size, fma(part(previous, j, size) - new, update, new))
        elif kind == RNN_TANH:
            put(hidden, j, size, tanh(first))
        else:
            put(hidden, j, size, at_least(first, like(first, 0.0)))
