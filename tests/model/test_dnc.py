import warnings

import pytest
import torch

from dnc_serve.model import DNC, DNCState, links

KINDS = [
    {"rnn_type": "lstm", "num_hidden_layers": 1},
    {"rnn_type": "lstm", "num_layers": 2, "num_hidden_layers": 2, "write_heads": 2, "independent_linears": True},
    {"rnn_type": "gru", "num_layers": 3, "share_memory": False, "bias": False, "clip": 0},
    {"rnn_type": "rnn", "nonlinearity": "relu", "num_layers": 2, "clip": 0.3, "output_size": 5, "write_heads": 3},
    {"rnn_type": "lstm", "bias": False, "batch_first": False, "clip": 0.2},
    {"memory": "sparse", "sparse_reads": 3, "num_layers": 2, "independent_linears": True},
    {"memory": "sparse_links", "sparse_reads": 2, "temporal_reads": 3, "num_layers": 2, "share_memory": False},
]


def make(**options) -> DNC:
    return DNC(3, 7, **{"nr_cells": 6, "cell_size": 4, "read_heads": 2} | options)


def scripted(dnc: DNC) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(dnc)


@pytest.mark.parametrize("options", KINDS)
def test_scripted_equals_eager(options, assert_same_state):
    dnc = make(**options)
    compiled = scripted(dnc)
    inputs = torch.randn(4, 5, 3)
    hidden = None
    for call in range(4):
        outputs, state = dnc(inputs, hidden, reset_experience=call == 2, pass_through_memory=call != 1)
        compiled_outputs, compiled_state = compiled(inputs, hidden, call == 2, call != 1)
        torch.testing.assert_close(compiled_outputs, outputs, rtol=0, atol=1e-6)
        assert_same_state(DNCState.of(compiled_state), state, atol=1e-6)
        hidden = state.detach()
    output, state = compiled.step(inputs[:, 0], compiled.initial_state(4))
    torch.testing.assert_close(output, dnc.step(inputs[:, 0], dnc.initial_state(4))[0])


def test_a_scripted_models_state_becomes_one_that_can_be_detached(assert_same_state):
    dnc = make()
    _, state = scripted(dnc)(torch.randn(2, 3, 3))
    detached = DNCState.of(state).detach()
    assert not detached.read_vectors.requires_grad
    assert not detached.memory[0].link_matrix.requires_grad
    assert_same_state(DNCState.of(state), detached)
    assert scripted(dnc)(torch.randn(2, 3, 3), detached)[1].read_vectors.shape == (2, 8)


@pytest.mark.parametrize("options", KINDS)
def test_stepping_equals_unrolling_equals_calling(options, assert_same_state):
    dnc = make(**options)
    inputs = torch.randn(6, 2, 3)
    state = dnc.initial_state(2)
    stepped = []
    for x in inputs:
        output, state = dnc.step(x, state)
        stepped.append(output)
    unrolled, unrolled_state = dnc.unroll(inputs, dnc.initial_state(2))
    called, called_state = dnc(inputs.transpose(0, 1) if dnc.batch_first else inputs)
    called = called.transpose(0, 1) if dnc.batch_first else called
    assert torch.equal(torch.stack(stepped), unrolled)
    assert torch.equal(called, unrolled)
    assert unrolled.shape == (6, 2, dnc.config.output_size)
    assert_same_state(unrolled_state, state)
    assert_same_state(called_state, state)


@pytest.mark.parametrize("options", KINDS)
def test_a_row_alone_equals_the_row_in_a_batch(options, random_state, assert_same_state):
    dnc = make(**options)
    inputs, state = torch.randn(5, 4, 3), random_state(dnc, 4)
    outputs, after = dnc.unroll(inputs, state)
    for row in range(4):
        rows = slice(row, row + 1)
        alone, alone_after = dnc.unroll(inputs[:, rows], state.rows(rows))
        torch.testing.assert_close(alone, outputs[:, rows], rtol=0, atol=1e-5)
        assert_same_state(alone_after, after.rows(rows), atol=1e-5)


def test_without_memory_only_the_controller_moves(random_state):
    dnc = make(num_layers=2)
    state = random_state(dnc, 2)
    x = torch.randn(2, 1, 3)
    outputs, after = dnc(x, state, pass_through_memory=False)
    for before, same in zip(state.memory[0], after.memory[0], strict=True):
        assert torch.equal(before, same)
    assert torch.equal(after.read_vectors, state.read_vectors)
    assert not torch.equal(after.controller_hidden[0][0], state.controller_hidden[0][0])
    top = after.controller_hidden[1][0][-1]
    seen = torch.nn.functional.linear(torch.cat((top, state.read_vectors), 1), dnc.output.weight, dnc.output.bias)
    torch.testing.assert_close(outputs[:, 0], seen)


def test_dropout_is_fresh_at_each_timestep_and_off_in_evaluation():
    dnc = make(dropout=0.5, num_hidden_layers=3)
    x = torch.randn(1, 3, 3)
    assert not torch.equal(dnc(x)[0], dnc(x)[0])
    dnc.eval()
    assert torch.equal(dnc(x)[0], dnc(x)[0])


def test_everything_is_a_parameter_or_a_buffer_and_moves():
    dnc = make(bias=False).double()
    outputs, state = dnc(torch.randn(2, 3, 3, dtype=torch.float64))
    assert outputs.dtype == state.memory[0].memory.dtype == torch.float64
    assert make(device="cpu").output.weight.device.type == "cpu"
    assert make(device="meta").towers[0].access.interface.linear.weight.device.type == "meta"


def test_ten_linear_layers_are_the_same_function_as_one():
    one, ten = make(), make(independent_linears=True)
    ten.load_state_dict(
        {name: value for name, value in one.state_dict().items() if "interface" not in name}, strict=False
    )
    with torch.no_grad():
        for part in one.interfaces()[0].sections:
            for target, source in zip(
                ten.interfaces()[0].section(part), one.interfaces()[0].section(part), strict=True
            ):
                target.copy_(source)
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(ten(x)[0], one(x)[0], rtol=0, atol=1e-6)


def test_clipping_reaches_hidden_cell_and_outputs():
    dnc = make(clip=0.05)
    outputs, state = dnc(torch.randn(2, 6, 3) * 10)
    hidden, cell = state.controller_hidden[0]
    for tensor in (outputs, hidden, cell):
        assert tensor.abs().max().item() == pytest.approx(0.05)
    assert make(clip=0)(torch.randn(2, 6, 3) * 1e3)[0].isfinite().all()


@pytest.mark.parametrize("options", KINDS)
def test_step_can_be_exported_ahead_of_time(options):
    dnc = make(**options).eval()

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dnc = dnc

        def forward(self, x, state):
            return self.dnc.step(x, state)

    x, state = torch.randn(4, 3), dnc.initial_state(4)
    exported = torch.export.export(Step(), (x, state)).module()
    torch.testing.assert_close(exported(x, state)[0], dnc.step(x, state)[0])


@pytest.mark.parametrize("least_entries", [0, links.LEAST_ENTRIES], ids=["our-backward", "autograd"])
def test_gradients_of_the_whole_step(monkeypatch, least_entries):
    """With the one stopped gradient let through, as a finite difference sees it."""
    monkeypatch.setattr(links, "LEAST_ENTRIES", least_entries)
    dnc = DNC(
        2, 4, nr_cells=4, read_heads=2, write_heads=2, cell_size=3, num_layers=2, stop_usage_gradient=False
    ).double()
    state = dnc.unroll(torch.randn(4, 2, 2, dtype=torch.float64), dnc.initial_state(2))[1].detach()
    leaves, spec = torch.utils._pytree.tree_flatten(state)
    names, parameters = zip(*dnc.named_parameters(), strict=True)
    inputs = torch.randn(2, 2, 2, dtype=torch.float64)

    def run(*tensors):
        given = torch.utils._pytree.tree_unflatten(list(tensors[1 : 1 + len(leaves)]), spec)
        weights = dict(zip(names, tensors[1 + len(leaves) :], strict=True))

        class Unroll(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.dnc = dnc

            def forward(self, x, hidden):
                return self.dnc.unroll(x, hidden)

        called = torch.func.functional_call(Unroll(), {f"dnc.{k}": v for k, v in weights.items()}, (tensors[0], given))
        return (called[0], *torch.utils._pytree.tree_flatten(called[1])[0])

    arguments = [tensor.detach().clone().requires_grad_() for tensor in (inputs, *leaves, *parameters)]
    assert torch.autograd.gradcheck(run, arguments, fast_mode=True)


def test_the_stopped_gradient_is_stopped(random_state):
    for stopped in (True, False):
        dnc = make(stop_usage_gradient=stopped)
        state = random_state(dnc, 1)
        write_weights = state.memory[0].write_weights.clone().requires_grad_()
        memory = state.memory[0]._replace(write_weights=write_weights)
        dnc.step(torch.randn(1, 3), state._replace(memory=[memory]))[1].memory[0].usage_vector.sum().backward()
        assert (write_weights.grad is None) == stopped


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bidirectional": True}, ValueError, "bidirectional is True; expected False: .*session"),
        ({"batch_first": 1}, TypeError, "batch_first is 1; expected True or False"),
        ({"debug": None}, TypeError, "debug is None"),
        ({"gpu_id": -2}, ValueError, "gpu_id is -2; expected -1"),
        (
            {"memory": "sparse", "sparse_reads": 7},
            ValueError,
            "sparse_reads is 7; expected at most nr_cells, which is 6",
        ),
        ({"memory": "sparse", "write_heads": 2}, ValueError, "write_heads is 2; expected 1: a sparse memory has one"),
        ({"memory": "sparser"}, ValueError, "memory is 'sparser'; expected one of 'dense', 'sparse', 'sparse_links'"),
        ({"nr_cells": 0}, ValueError, "nr_cells is 0; expected at least 1"),
        ({"gpu_id": "0"}, TypeError, "gpu_id is '0'; expected -1"),
        ({"colour": 3}, TypeError, "DNC has no colour; its arguments are input_size, hidden_size, rnn_type"),
        ({"reed_heads": 3}, TypeError, r"DNC has no reed_heads \(did you mean read_heads\?\)"),
        ({"stop_usage": True}, TypeError, r"DNC has no stop_usage \(did you mean stop_usage_gradient\?\)"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)
