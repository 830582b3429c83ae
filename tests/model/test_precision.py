"""Models in bfloat16, under autocast, quantised and with adapters: states keep their kind, and modules are called."""

import warnings

import pytest
import torch
from torch import nn

from dnc_serve.model import DNC, DNCConfig, StateLayout, load_model, save_weights
from dnc_serve.model.weights import weights_digest

KINDS = [
    {"num_hidden_layers": 1},
    {"rnn_type": "gru", "write_heads": 2, "dropout": 0.5},
    {"rnn_type": "rnn", "num_layers": 2, "share_memory": False},
    {"independent_linears": True, "bias": False, "cosine": "dnc_package", "allocation_order": "usage"},
    {"memory": "sparse_links", "num_layers": 2},
]
HALVES = [torch.bfloat16, torch.float16]


def make(**options) -> DNC:
    return DNC(3, 7, **{"nr_cells": 6, "cell_size": 4, "read_heads": 2} | options)


def dtypes_of(state) -> set[torch.dtype]:
    return {leaf.dtype for leaf in torch.utils._pytree.tree_leaves(state) if leaf.is_floating_point()}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("options", KINDS)
def test_autocast_computes_products_in_half_precision_and_keeps_states_whole(options, half):
    dnc = make(**options).eval()
    inputs = torch.randn(2, 5, 3)
    expected, _ = dnc(inputs)
    expected, _ = dnc(inputs, dnc(inputs)[1])
    with torch.autocast("cpu", dtype=half):
        _, state = dnc(inputs)
        outputs, after = dnc(inputs.to(half), state)  # as a half-precision layer before it gives them
        stepped, _ = dnc.step(inputs[:, 0], state)
    assert outputs.dtype == stepped.dtype == half
    assert dtypes_of(state) == dtypes_of(after) == {torch.float32}
    torch.testing.assert_close(outputs.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("options", KINDS)
def test_models_train_under_autocast(options, half):
    dnc = make(**options | {"dropout": 0})
    inputs = torch.randn(2, 5, 3)
    gradients = []
    for enabled in (False, True):
        dnc.zero_grad()
        with torch.autocast("cpu", dtype=half, enabled=enabled):
            loss = dnc(inputs)[0].float().square().mean()
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in dnc.parameters()]))
    assert torch.cosine_similarity(*gradients, 0) > 0.99


@pytest.mark.parametrize("options", KINDS)
def test_a_bfloat16_model_steps_shows_its_memory_and_is_named(options, tmp_path):
    dnc = make(**options, debug=True).to(torch.bfloat16).eval()
    _, state, table = dnc(torch.randn(2, 5, 3, dtype=torch.bfloat16))
    layout = StateLayout(dnc.config)
    assert dtypes_of(state) == {torch.bfloat16}
    assert table["memory"].tolist()[-1] == state.memory[-1].memory[0].flatten().tolist()
    assert layout.dump(layout.pack(state)[1])["read_vectors"].tolist() == [state.read_vectors[1].tolist()]
    save_weights(dnc, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.like.dtype == torch.bfloat16
    digests = {weights_digest(model.config, model.state_dict()) for model in (dnc, loaded, make(**options).bfloat16())}
    assert len(digests) == 2


def test_a_digest_is_that_of_the_numbers_bytes():
    """Sessions that stand on disk name it."""
    weights = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(2.0)}
    digest = weights_digest(DNCConfig(input_size=1, hidden_size=2), weights)
    assert digest == "950d18335259fe85d82e991404375bd4d3d68e03e51b084b8a7ee443cddcbf94"


def test_linear_layers_are_called_as_modules():
    """So that hooks, adapters and quantised layers have their say."""
    dnc = make().eval()
    called = []
    for name, module in dnc.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    dnc(torch.randn(2, 1, 3))
    assert called == ["towers.0.access.interface.linear", "output"]


class Adapter(nn.Module):
    """A linear layer's low-rank change, as LoRA makes it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.down = layer, nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def test_an_adapter_in_a_linear_layers_place_changes_outputs_and_learns():
    dnc = make()
    inputs = torch.randn(2, 4, 3)
    before = dnc(inputs)[0]
    dnc.output = Adapter(dnc.output)
    dnc.towers[0].access.interface.linear = Adapter(dnc.towers[0].access.interface.linear)
    outputs = dnc(inputs)[0]
    assert not torch.allclose(outputs, before)
    outputs.sum().backward()
    assert all(layer.up.weight.grad.any() for layer in (dnc.output, dnc.towers[0].access.interface.linear))


def test_a_quantised_model_steps():
    dnc = make().eval()
    inputs = torch.randn(2, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about itself
        quantised = torch.ao.quantization.quantize_dynamic(dnc, {nn.Linear})
    torch.testing.assert_close(quantised(inputs)[0], dnc(inputs)[0], rtol=0, atol=0.1)
    assert not torch.equal(quantised(inputs)[0], dnc(inputs)[0])
