"""Against the `dnc` package itself, as PyPI has it."""

import pytest
import torch

from dnc_serve.model import DNC, from_dnc_package, load_artifact
from dnc_serve.model.export import export

SIZES = {"nr_cells": 12, "read_heads": 3, "cell_size": 7}
KINDS = [
    {"rnn_type": "lstm", "num_hidden_layers": 1},
    {"rnn_type": "lstm", "num_layers": 2, "bias": False, "independent_linears": True},
    {"rnn_type": "gru", "num_layers": 3, "share_memory": False},
    {"rnn_type": "rnn", "num_layers": 2, "independent_linears": True, "share_memory": False, "nonlinearity": "relu"},
]


@pytest.mark.parametrize("clip", [20, 0.3, 0])
@pytest.mark.parametrize("options", KINDS)
def test_a_checkpoint_gives_the_packages_outputs_call_by_call(dnc_package, options, clip):
    theirs = dnc_package.DNC(input_size=5, hidden_size=24, clip=clip, **SIZES, **options)
    ours = from_dnc_package(theirs.state_dict(), clip=clip, nonlinearity=options.get("nonlinearity", "tanh"), **SIZES)
    zeros = ours.initial_state(2)
    their_hidden, hidden = (list(zeros.controller_hidden), None, None), None
    with torch.no_grad():
        for call in range(12):
            inputs = torch.randn(2, 1 + call % 3, 5)
            reset = call == 6
            expected, their_hidden = theirs(inputs, their_hidden, reset_experience=reset)
            outputs, hidden = ours(inputs, hidden, reset_experience=reset)
            torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)


def test_a_checkpoint_can_be_served_to_those_who_call_it_a_timestep_at_a_time(dnc_package, tmp_path):
    theirs = dnc_package.DNC(input_size=5, hidden_size=24, num_layers=2, **SIZES)
    ours = from_dnc_package(theirs.state_dict(), read_feedback="timestep", **SIZES)
    export(ours, tmp_path)
    artifact = load_artifact(tmp_path)
    zeros, packed = ours.initial_state(2), torch.zeros(2, artifact.layout.size)
    hidden = (list(zeros.controller_hidden), None, None)
    with torch.no_grad():
        for x in torch.randn(6, 2, 5):
            expected, hidden = theirs(x.unsqueeze(1), hidden)
            outputs, packed = artifact.tick(x.unsqueeze(0), packed)
            torch.testing.assert_close(outputs[0], expected[:, 0], rtol=0, atol=1e-6)


def test_their_hidden_state_goes_on_with_ours(dnc_package):
    theirs = dnc_package.DNC(input_size=5, hidden_size=24, num_layers=2, **SIZES)
    ours = from_dnc_package(theirs.state_dict(), **SIZES)
    with torch.no_grad():
        _, hidden = theirs(torch.randn(2, 4, 5))
        inputs = torch.randn(2, 1, 5)
        outputs, _ = ours(inputs, hidden)
        expected, _ = theirs(inputs, hidden)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)


def test_gradients_are_the_packages(dnc_package):
    theirs = dnc_package.DNC(input_size=5, hidden_size=24, num_hidden_layers=1, **SIZES)
    ours = from_dnc_package(theirs.state_dict(), **SIZES)
    inputs = torch.randn(2, 1, 5)
    with torch.no_grad():
        hidden = theirs(torch.randn(2, 6, 5))[1]
    memory = {name: tensor.clone() for name, tensor in hidden[1].items()}
    theirs(inputs, (list(hidden[0]), hidden[1], hidden[2]))[0].sum().backward()
    ours(inputs, (hidden[0], memory, hidden[2]))[0].sum().backward()
    torch.testing.assert_close(ours.cells()[0][0].weight_ih.grad, theirs.lstm_layer_0.weight_ih_l0.grad)
    torch.testing.assert_close(ours.output.weight.grad, theirs.output.weight.grad)


def test_what_is_no_checkpoint_or_of_other_sizes_is_named():
    with pytest.raises(ValueError, match=r"no controller's weights.*it has output.weight"):
        from_dnc_package({"output.weight": torch.zeros(1)}, **SIZES)
    with pytest.raises(ValueError, match="no controller's weights"):
        from_dnc_package(DNC(5, 24, **SIZES).state_dict(), **SIZES)


def test_other_sizes_than_the_checkpoints_are_named(dnc_package):
    weights = dnc_package.DNC(input_size=5, hidden_size=24, **SIZES).state_dict()
    with pytest.raises(ValueError, match="nr_cells, cell_size and read_heads ask for"):
        from_dnc_package(weights, **{**SIZES, "cell_size": 8})
    del weights["output.bias"]
    with pytest.raises(ValueError, match=r"state_dict lacks 'output\.bias'"):
        from_dnc_package(weights, **SIZES)
