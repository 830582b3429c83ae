"""The module that is served: equal to the model, and each row's bits its own affair."""

import pytest
import torch

from dnc_serve.model import DNC, StateLayout
from dnc_serve.model.export import script
from dnc_serve.model.tick import TickModule

TILES = [8, 16, 32, 64]
WARM_CALLS = 3  # TorchScript's profiling executor may change code after its first calls


def make(**options) -> DNC:
    return DNC(8, 48, **{"num_hidden_layers": 1, "nr_cells": 64, "cell_size": 16, "read_heads": 1} | options).eval()


@pytest.fixture
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "share_memory": False, "rnn_type": "gru"},
        {"write_heads": 2, "read_heads": 3},
        {"memory": "sparse"},
        {"memory": "sparse_links", "read_heads": 2, "num_layers": 2},
    ],
)
def test_ticks_equal_the_model(options, no_gradients):
    dnc = make(nr_cells=12, **options)
    layout = StateLayout(dnc.config)
    inputs, packed = torch.randn(5, 3, 8), torch.zeros(3, layout.size)
    before = packed.clone()
    outputs, state = dnc.unroll(inputs, dnc.initial_state(3))
    for module in (TickModule(dnc), script(dnc)):
        for _ in range(WARM_CALLS):
            ticked, after = module(inputs, packed)
            torch.testing.assert_close(ticked, outputs, rtol=0, atol=1e-6)
            torch.testing.assert_close(after, layout.pack(state), rtol=0, atol=1e-6)
        assert torch.equal(packed, before)


def test_the_model_itself_stays_as_it_was(no_gradients):
    dnc = make(nr_cells=12).train()
    module = TickModule(dnc).eval().requires_grad_(False)
    inputs, packed = torch.randn(5, 3, 8), torch.zeros(3, StateLayout(dnc.config).size)
    before = module(inputs, packed)[0]
    assert dnc.training
    assert all(parameter.requires_grad for parameter in dnc.parameters())
    assert {part.least_rows for part in dnc.modules() if hasattr(part, "least_rows")} == {1}
    for parameter in dnc.parameters():
        parameter.zero_()
    assert torch.equal(module(inputs, packed)[0], before), "nor does the model change the module"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "share_memory": False, "write_heads": 2},
        {"memory": "sparse", "num_layers": 2},
        {"memory": "sparse_links"},
    ],
)
def test_a_traced_chunk_gives_every_rows_debug_table(options, no_gradients):
    dnc = make(nr_cells=10, **options)
    module = script(dnc)
    layout = StateLayout(dnc.config)
    dnc.debug = True
    inputs = torch.randn(4, 3, 8)
    outputs, packed, observed = module.trace_debug(inputs, torch.zeros(3, layout.size))
    plain_outputs, plain_packed = module(inputs, torch.zeros(3, layout.size))
    assert torch.equal(outputs, plain_outputs)
    assert torch.equal(packed, plain_packed)
    for row in range(3):
        table = dnc(inputs[:, row : row + 1].transpose(0, 1))[2]
        for name, array in table.items():
            served = observed[name][:, :, row].flatten(0, 1).flatten(1)
            torch.testing.assert_close(served, torch.from_numpy(array), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "share_memory": False, "write_heads": 2, "read_heads": 3, "rnn_type": "gru"},
        {"rnn_type": "rnn", "nonlinearity": "relu", "clip": 0.1, "clip_scope": "controller_output"},
    ],
)
def test_the_interface_is_what_the_last_timestep_asked_of_the_memory(options, no_gradients):
    dnc = make(nr_cells=10, **options)
    module = script(dnc)
    asked = []
    for layer in dnc.interfaces():
        layer.register_forward_hook(lambda layer, inputs, interface: asked.append(interface))
    packed = torch.zeros(3, StateLayout(dnc.config).size)
    for x in torch.randn(4, 3, 8):
        asked.clear()
        _, packed = TickModule(dnc)(x[None], packed)
    write_heads = dnc.config.write_heads
    expected = {
        name: torch.stack([getattr(interface, name) for interface in asked])
        for name in ("allocation_gates", "write_gates", "free_gates", "read_modes")
    }
    strengths = torch.stack([interface.strengths for interface in asked])
    expected["write_strengths"], expected["read_strengths"] = strengths[..., :write_heads], strengths[..., write_heads:]
    for found in (TickModule(dnc).interface(packed), module.interface(packed)):
        assert set(found) == set(expected)
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=0, atol=1e-6)


def test_a_rows_bits_are_the_same_in_every_tile_and_position(no_gradients):
    dnc = make()
    module = script(dnc)
    layout = StateLayout(dnc.config)
    probe = torch.randn(20, 8)

    def run(rows: int, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.randn(20, rows, 8)
        inputs[:, position] = probe
        packed = torch.randn(rows, layout.size).abs() / 100
        packed[position] = 0
        outputs = []
        for x in inputs:
            output, packed = module(x[None], packed)
            outputs.append(output[0, position])
        return torch.stack(outputs), packed[position]

    for _ in range(WARM_CALLS):
        run(8, 0)
    outputs, state = run(8, 0)
    for rows in TILES:
        for position in (0, 3, rows - 1):
            other_outputs, other_state = run(rows, position)
            assert torch.equal(other_outputs, outputs), f"outputs in a tile of {rows} at {position}"
            assert torch.equal(other_state, state), f"state in a tile of {rows} at {position}"


def test_a_row_that_is_not_finite_touches_no_other(no_gradients):
    dnc = make()
    layout = StateLayout(dnc.config)
    module = script(dnc)
    inputs, packed = torch.randn(3, 8, 8), torch.zeros(8, layout.size)
    outputs, after = module(inputs, packed)
    inputs[:, 2] = float("nan")
    packed[5] = float("inf")
    bad_outputs, bad_after = module(inputs, packed)
    others = [0, 1, 3, 4, 6, 7]
    assert torch.equal(bad_outputs[:, others], outputs[:, others])
    assert torch.equal(bad_after[others], after[others])


@pytest.mark.parametrize("options", [{}, {"memory": "sparse"}, {"memory": "sparse_links", "num_layers": 2}])
def test_the_tick_can_be_exported_ahead_of_time(options, no_gradients):
    dnc = make(nr_cells=12, **options)
    module = TickModule(dnc)
    inputs, packed = torch.randn(1, 8, 8), torch.zeros(8, StateLayout(dnc.config).size)
    outputs, after = torch.export.export(module, (inputs, packed)).module()(inputs, packed)
    expected, expected_after = module(inputs, packed)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(after, expected_after)
