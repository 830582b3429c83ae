import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from dnc_serve.model import DNC


def make(**options) -> DNC:
    return DNC(3, 7, **{"nr_cells": 6, "cell_size": 4, "read_heads": 2} | options)


@pytest.mark.parametrize("options", [{}, {"batch_first": False}, {"num_layers": 2, "rnn_type": "gru"}])
def test_packed_rows_end_in_the_state_of_their_own_last_timestep(options, random_state, assert_same_state):
    dnc = make(**options)
    lengths = [2, 5, 1, 5]
    inputs, state = torch.randn(4, 5, 3), random_state(dnc, 4)
    padded = inputs if dnc.batch_first else inputs.transpose(0, 1)
    packed = pack_padded_sequence(padded, torch.tensor(lengths), dnc.batch_first, enforce_sorted=False)
    outputs, after = dnc(packed, state)
    unpacked, unpacked_lengths = pad_packed_sequence(outputs, batch_first=True)
    assert unpacked_lengths.tolist() == lengths
    for row, length in enumerate(lengths):
        rows = slice(row, row + 1)
        alone, alone_after = dnc.unroll(inputs[rows, :length].transpose(0, 1), state.rows(rows))
        torch.testing.assert_close(unpacked[row, :length], alone[:, 0], rtol=0, atol=1e-5)
        assert_same_state(after.rows(rows), alone_after, atol=1e-5)


def test_packed_sequences_that_are_sorted_already_keep_their_order():
    dnc = make()
    rows = [torch.randn(4, 3), torch.randn(2, 3)]
    outputs, state = dnc(pack_sequence(rows))
    torch.testing.assert_close(
        outputs.data[outputs.batch_sizes.cumsum(0) - outputs.batch_sizes], dnc(rows[0][None])[0][0]
    )
    assert state.batch_size == 2


@pytest.mark.parametrize("options", [{}, {"share_memory": False}, {"batch_first": False, "write_heads": 2}])
def test_debug_gives_row_zeros_memory_after_every_access(options):
    dnc = make(num_layers=2, debug=True, **options)
    inputs = torch.randn(3, 4, 3) if dnc.batch_first else torch.randn(4, 3, 3)
    _, state, debug = dnc(inputs)
    heads = dnc.config.write_heads
    assert {key: array.shape for key, array in debug.items()} == {
        "memory": (8, 24),
        "link_matrix": (8, heads * 36),
        "precedence": (8, heads * 6),
        "read_weights": (8, 12),
        "write_weights": (8, heads * 6),
        "usage_vector": (8, 6),
    }
    last = state.memory[-1]
    for key, array in debug.items():
        assert array[-1].tolist() == getattr(last, key)[0].flatten().tolist()


def test_debug_follows_the_callers_row_zero_through_a_packed_sequence():
    dnc = make(debug=True)
    first = torch.randn(2, 3)
    _, _, debug = dnc(pack_sequence([first, torch.randn(5, 3)], enforce_sorted=False))
    _, _, alone = dnc(first[None])
    assert debug["memory"].shape == (2, 24)
    torch.testing.assert_close(torch.tensor(debug["memory"]), torch.tensor(alone["memory"]))
