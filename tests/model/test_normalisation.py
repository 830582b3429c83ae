"""A model that normalises by its weights computes what normalising around it does."""

import pytest
import torch
from torch import Tensor

from dnc_serve.model.artifact import load_artifact
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from dnc_serve.model.normalisation import Scale, folded, scale_of

SIZES = {"nr_cells": 6, "cell_size": 5, "read_heads": 2, "output_size": 2, "clip": 0}
KINDS = [
    {"rnn_type": "lstm", "num_hidden_layers": 2},
    {"rnn_type": "lstm", "bias": False},
    {"rnn_type": "gru", "num_layers": 2},
    {"rnn_type": "rnn", "num_layers": 2, "share_memory": False, "independent_linears": True},
]


def scales() -> tuple[Scale, Scale]:
    inputs = Scale(torch.tensor([20.0, -1000.0, 0.0]).double(), torch.tensor([5.0, 200.0, 0.01]).double())
    return inputs, Scale(torch.tensor([500.0, 0.0]).double(), torch.tensor([30.0, 2.0]).double())


def answers(dnc: DNC, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        outputs, _ = dnc.unroll(inputs, dnc.initial_state(inputs.size(1)))
    return outputs


@pytest.mark.parametrize("options", KINDS)
def test_folding_is_exact(options: dict[str, object]) -> None:
    dnc = DNC(3, 8, **SIZES, **options).double()
    before = {name: tensor.clone() for name, tensor in dnc.state_dict().items()}
    inputs, outputs = scales()
    normal = torch.randn(9, 4, 3).double()
    raw = normal * inputs.deviation + inputs.mean
    expected = answers(dnc, normal) * outputs.deviation + outputs.mean
    torch.testing.assert_close(answers(folded(dnc, inputs, outputs), raw), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(answers(folded(dnc, inputs, None), raw), answers(dnc, normal), rtol=0, atol=1e-10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dnc.state_dict().items())


def test_the_artifact_takes_raw_inputs_and_gives_raw_outputs(tmp_path) -> None:  # type: ignore[no-untyped-def]
    dnc = DNC(3, 8, **SIZES)
    inputs, outputs = scales()
    export(folded(dnc, inputs, outputs), tmp_path)
    artifact = load_artifact(tmp_path)
    raw = torch.randn(9, 4, 3) * inputs.deviation.float() + inputs.mean.float()
    with torch.no_grad():
        given, _ = artifact.module(raw, torch.zeros(4, artifact.layout.size))
    expected = answers(dnc, inputs.normalised(raw)).double() * outputs.deviation + outputs.mean
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=30 * 1e-4)  # a ten-thousandth of a deviation


def test_a_model_that_clips_its_outputs_keeps_them() -> None:
    dnc = DNC(3, 8, **{**SIZES, "clip": 20})
    inputs, outputs = scales()
    with pytest.raises(ValueError, match="clip is 20; expected 0"):
        folded(dnc, inputs, outputs)
    folded(dnc, inputs, None)


def test_a_constant_column_becomes_zeros_and_no_division_by_zero() -> None:
    values = torch.tensor([[1.0, 3e6], [3.0, 3e6]])
    scale = scale_of(values, ["a", "b"])
    assert scale.normalised(values).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert scale.deviation.tolist() == [1.0, 3e6]  # so that its weights' share of the bias is as small as they are


def test_a_column_whose_values_float32_hardly_tells_apart_is_refused() -> None:
    with pytest.raises(ValueError, match=r"b is 1000000 ± 0\.5; expected a deviation of at least 1e-05"):
        scale_of(torch.tensor([[1.0, 1e6 - 0.5], [3.0, 1e6 + 0.5]]), ["a", "b"])
