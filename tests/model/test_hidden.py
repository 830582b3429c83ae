import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from dnc_serve.model import DNC, DNCState

KINDS = [
    {"rnn_type": "lstm", "num_hidden_layers": 1},
    {"rnn_type": "lstm", "num_layers": 2, "num_hidden_layers": 2, "write_heads": 2, "independent_linears": True},
    {"rnn_type": "gru", "num_layers": 3, "share_memory": False, "bias": False, "clip": 0},
    {"rnn_type": "rnn", "nonlinearity": "relu", "num_layers": 2, "clip": 0.3, "output_size": 5, "write_heads": 3},
    {"rnn_type": "lstm", "bias": False, "batch_first": False, "clip": 0.2},
]


def make(**options) -> DNC:
    return DNC(3, 7, **{"nr_cells": 6, "cell_size": 4, "read_heads": 2} | options)


@pytest.mark.parametrize("options", KINDS)
def test_states_have_the_seeds_shapes(options):
    dnc = make(**options)
    config = dnc.config
    batch_rows = 2
    controller_hidden, memory, read_vectors = dnc.step(torch.randn(batch_rows, 3), dnc.initial_state(batch_rows))[1]
    assert len(controller_hidden) == config.num_layers
    for layer in controller_hidden:
        parts = layer if config.rnn_type == "lstm" else [layer]
        assert [tuple(part.shape) for part in parts] == [(config.num_hidden_layers, batch_rows, 7)] * len(parts)
    assert len(memory) == (1 if config.share_memory else config.num_layers)
    for one in memory:
        assert one.memory.shape == (batch_rows, 6, 4)
        assert one.link_matrix.shape == (batch_rows, config.write_heads, 6, 6)
        assert one.precedence.shape == one.write_weights.shape == (batch_rows, config.write_heads, 6)
        assert one.read_weights.shape == (batch_rows, 2, 6)
        assert one.usage_vector.shape == (batch_rows, 6)
    assert read_vectors.shape == (batch_rows, 8)


def test_hidden_states_pickle_slice_and_move(assert_same_state):
    dnc = make(num_layers=2)
    state = dnc(torch.randn(3, 2, 3))[1]
    assert state.read_vectors.requires_grad
    assert not state.detach().read_vectors.requires_grad
    assert_same_state(pickle.loads(pickle.dumps(state.detach())), state.detach())
    assert state.to(torch.float64).memory[0].link_matrix.dtype == torch.float64
    assert_same_state(state.rows(torch.tensor([2, 0])).rows(slice(1, 2)), state.rows(slice(0, 1)))


@pytest.mark.parametrize("options", KINDS)
def test_a_saved_state_is_loaded_as_weights_are(options, tmp_path, random_state, assert_same_state):
    state = random_state(make(**options), 2)
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert type(loaded) is DNCState
    assert_same_state(loaded, state)
    assert loaded.detach().rows(slice(1)).batch_size == 1


def test_hidden_may_be_nothing_or_partly_nothing_or_dicts(assert_same_state):
    dnc = make(num_layers=2)
    x = torch.randn(2, 3, 3)
    expected = dnc(x)
    for hidden in (None, (None, None, None), dnc.initial_state(2), (dnc.initial_state(2)[0], None, None)):
        outputs, state = dnc(x, hidden)
        assert torch.equal(outputs, expected[0])
        assert_same_state(state, expected[1])
    controller_hidden, memory, read_vectors = expected[1]
    again = dnc(x, expected[1])
    for given in (memory[0], memory[0]._asdict(), [memory[0]._asdict()], memory):
        outputs, state = dnc(x, (controller_hidden, given, read_vectors))
        assert torch.equal(outputs, again[0])
        assert_same_state(state, again[1])


def test_an_unshared_memory_may_be_a_list_of_dicts(random_state):
    dnc = make(num_layers=2, share_memory_between_layers=False)
    state = random_state(dnc, 2)
    x = torch.randn(2, 1, 3)
    dicts = (state.controller_hidden, [memory._asdict() for memory in state.memory], state.read_vectors)
    assert torch.equal(dnc(x, dicts)[0], dnc(x, state)[0])


def test_reset_experience_zeroes_the_memories_and_nothing_of_the_callers(random_state, assert_same_state):
    dnc = make(num_layers=2, share_memory=False)
    state = random_state(dnc, 2)
    before = pickle.loads(pickle.dumps(state))
    x = torch.randn(2, 3, 3)
    outputs, after = dnc(x, state, reset_experience=True)
    assert_same_state(state, before)
    expected = dnc(x, DNCState(state.controller_hidden, dnc.initial_state(2).memory, state.read_vectors))
    assert torch.equal(outputs, expected[0])
    assert_same_state(after, expected[1])
    assert not torch.equal(outputs, dnc(x, state)[0])


def test_a_call_changes_nothing_of_the_callers(random_state, assert_same_state):
    dnc = make()
    state = random_state(dnc, 2)
    before = pickle.loads(pickle.dumps(state))
    with torch.no_grad():
        dnc(torch.randn(2, 3, 3), state)
    assert_same_state(state, before)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda dnc, s: dnc(torch.randn(2, 3)),
            ValueError,
            r"input has shape \[2, 3\]; expected \[B, T, I\] with I = 3",
        ),
        (lambda dnc, s: dnc(torch.randn(2, 1, 4)), ValueError, r"input has shape \[2, 1, 4\]"),
        (lambda dnc, s: dnc(torch.randn(2, 0, 3)), ValueError, "at least one row and one timestep"),
        (lambda dnc, s: dnc([1, 2]), TypeError, "input is of type list; expected a tensor"),
        (
            lambda dnc, s: dnc(torch.zeros(2, 1, 3).double()),
            ValueError,
            "input is torch.float64 .*expected torch.float32",
        ),
        (lambda dnc, s: dnc(pack_sequence([torch.zeros(2, 9)])), ValueError, "vectors of 9; expected input_size, 3"),
        (lambda dnc, s: dnc(torch.zeros(1, 1, 3), s), ValueError, r"controller_hidden\[0\]\[0\] has shape \[2, 2, 7\]"),
        (lambda dnc, s: dnc(torch.zeros(2, 1, 3), (s[0], s[1])), TypeError, "hidden is a tuple of 2"),
        (
            lambda dnc, s: dnc(torch.zeros(2, 1, 3), (s[0][0][0], None, None)),
            ValueError,
            "controller_hidden is a tensor",
        ),
        (lambda dnc, s: dnc(torch.zeros(2, 1, 3), ([s[0][0][0]], None, None)), ValueError, r"expected an LSTM's"),
        (lambda dnc, s: dnc(torch.zeros(2, 1, 3), (None, {"memory": 1}, None)), ValueError, r"memory\[0\] lacks link"),
        (lambda dnc, s: dnc(torch.zeros(2, 1, 3), (None, [3], None)), TypeError, r"memory\[0\] is of type int"),
        (lambda dnc, s: dnc(torch.zeros(2, 1, 3), (None, None, 3)), TypeError, "read_vectors is of type int"),
        (
            lambda dnc, s: dnc(torch.zeros(2, 1, 3), (None, None, s[2].double())),
            ValueError,
            "read_vectors is torch.float64 on cpu; expected torch.float32",
        ),
    ],
)
def test_wrong_calls_are_named(call, error, message, random_state):
    dnc = make()
    with pytest.raises(error, match=message):
        call(dnc, random_state(dnc, 2))
