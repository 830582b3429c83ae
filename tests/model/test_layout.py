import numpy as np
import pytest
import torch

from dnc_serve.model import DNC, DNCConfig, StateLayout
from dnc_serve.model.state import memory_shapes

KINDS = [
    {},
    {"num_layers": 2, "share_memory": False, "write_heads": 2},
    {"rnn_type": "gru", "num_layers": 2, "num_hidden_layers": 3},
    {"memory": "sparse"},
    {"memory": "sparse_links", "num_layers": 2, "share_memory": False},
]


def make(**options) -> DNC:
    return DNC(3, 5, **{"nr_cells": 4, "cell_size": 2, "read_heads": 2} | options)


@pytest.mark.parametrize("options", KINDS)
def test_packing_and_unpacking_loses_nothing(options, random_state, assert_same_state):
    dnc = make(**options)
    layout = StateLayout(dnc.config)
    state = random_state(dnc, 3)
    packed = layout.pack(state)
    assert packed.shape == (3, layout.size)
    assert_same_state(layout.unpack(packed), state)
    assert layout.unpack(packed).memory[0].memory.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()


@pytest.mark.parametrize("options", KINDS)
def test_fields_tile_the_row(options):
    config = make(**options).config
    layout = StateLayout(config)
    offset = 0
    for field in layout.fields:
        assert field.offset == offset
        assert field.size == np.prod(field.shape)
        offset += field.size
    assert offset == layout.size
    memory_fields = {field.name for field in layout.fields if field.offset >= layout.experience_offset}
    assert memory_fields == set(memory_shapes(config))


@pytest.mark.parametrize("options", KINDS)
def test_zeros_from_the_experience_offset_are_a_reset(options, random_state, assert_same_state):
    dnc = make(**options)
    layout = StateLayout(dnc.config)
    state = random_state(dnc, 2)
    packed = layout.pack(state)
    packed[:, layout.experience_offset :] = 0
    assert_same_state(layout.unpack(packed), state.reset_experience())


@pytest.mark.parametrize("options", KINDS)
def test_a_dump_has_one_row_for_each_memory_and_layer(options, random_state):
    dnc = make(**options)
    layout = StateLayout(dnc.config)
    state = random_state(dnc, 2)
    row = layout.pack(state)[1]
    dump = layout.dump(row)
    for name in memory_shapes(dnc.config):
        assert dump[name].tolist() == [getattr(memory, name)[1].flatten().tolist() for memory in state.memory]
    assert dump["read_vectors"].tolist() == [state.read_vectors[1].tolist()]
    hidden = [layer if torch.is_tensor(layer) else layer[0] for layer in state.controller_hidden]
    assert dump["controller_hidden"].tolist() == [layer[:, 1].flatten().tolist() for layer in hidden]
    assert ("controller_cell" in dump) == (dnc.config.rnn_type == "lstm")
    from_numpy = layout.dump(row.numpy())
    row.zero_()
    assert from_numpy["memory"].tolist() == dump["memory"].tolist(), "a dump is a copy"


def test_a_row_of_another_size_is_refused():
    layout = StateLayout(DNCConfig(input_size=1, hidden_size=1))
    with pytest.raises(ValueError, match=rf"row has shape \[3\]; expected \[{layout.size}\]"):
        layout.dump(np.zeros(3, np.float32))
