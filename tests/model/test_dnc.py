import pickle
import warnings

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from dnc_serve.model import DNC, DNCState, MemoryState

KINDS = [
    {"rnn_type": "lstm", "num_hidden_layers": 1},
    {"rnn_type": "lstm", "num_layers": 2, "num_hidden_layers": 2, "write_heads": 2, "independent_linears": True},
    {"rnn_type": "gru", "num_layers": 3, "share_memory": False, "bias": False, "clip": 0},
    {"rnn_type": "rnn", "nonlinearity": "relu", "num_layers": 2, "clip": 0.3, "output_size": 5, "write_heads": 3},
    {"rnn_type": "lstm", "bias": False, "batch_first": False, "clip": 0.2},
]


def make(**options) -> DNC:
    return DNC(3, 7, **{"nr_cells": 6, "cell_size": 4, "read_heads": 2} | options)


def scripted(dnc: DNC) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(dnc)


def eager_like(dnc: DNC, state) -> DNCState:
    """TorchScript returns states of a class of its own with the same fields."""
    return DNCState(state.controller_hidden, [MemoryState(*memory) for memory in state.memory], state.read_vectors)


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
        assert_same_state(eager_like(dnc, compiled_state), state, atol=1e-6)
        hidden = state.detach()
    output, state = compiled.step(inputs[:, 0], compiled.initial_state(4))
    torch.testing.assert_close(output, dnc.step(inputs[:, 0], dnc.initial_state(4))[0])


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


def test_gradients_of_the_whole_step():
    """With the one stopped gradient let through, as a finite difference sees it."""
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
        ({"nr_cells": 0}, ValueError, "nr_cells is 0; expected at least 1"),
        ({"colour": 3}, TypeError, "colour"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)


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
