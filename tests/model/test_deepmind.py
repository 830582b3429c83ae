import pytest
import torch

from dnc_serve.model import DNC, MemoryState, from_deepmind, links

CLOSE = {"rtol": 0, "atol": 1e-10}
CASES = ["dnc_tiny", "dnc_small_clip", "dnc_n64", "dnc_repeat_copy_size"]


def load(case: dict, **options) -> DNC:
    return from_deepmind(
        {name.removeprefix("weights/"): array.numpy() for name, array in case.items() if name.startswith("weights/")},
        nr_cells=case["config/memory_size"],
        cell_size=case["config/word_size"],
        read_heads=case["config/num_reads"],
        write_heads=case["config/num_writes"],
        clip=case["config/clip_value"],
        batch_first=False,
        **options,
    )


def hidden(case: dict, memory: MemoryState) -> tuple:
    controller_hidden = [(case["initial/hidden"][None], case["initial/cell"][None])]
    return controller_hidden, memory._asdict(), case["initial/access_output"].flatten(1)


@pytest.mark.parametrize("independent_linears", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_whole_net_gives_deepminds_numbers(golden, golden_memory_state, name, independent_linears):
    case = golden(name)
    dnc = load(case, independent_linears=independent_linears)
    assert dnc.output.weight.dtype == torch.float64
    given = hidden(case, golden_memory_state(case, "initial"))
    for step in range(len(case["inputs"])):
        outputs, given = dnc(case["inputs"][step : step + 1], given)
        torch.testing.assert_close(outputs[0], case["outputs"][step], **CLOSE)
        torch.testing.assert_close(given.controller_hidden[0][0][0], case["states/hidden"][step], **CLOSE)
        torch.testing.assert_close(given.controller_hidden[0][1][0], case["states/cell"][step], **CLOSE)
        torch.testing.assert_close(given.read_vectors, case["states/access_output"][step].flatten(1), **CLOSE)
        for one, expected in zip(given.memory[0], golden_memory_state(case, "states", step), strict=True):
            torch.testing.assert_close(one, expected, **CLOSE)


@pytest.mark.parametrize("least_entries", [0, links.LEAST_ENTRIES], ids=["our-backward", "autograd"])
@pytest.mark.parametrize("name", ["dnc_tiny", "dnc_small_clip", "dnc_repeat_copy_size"])
def test_gradients_are_deepminds(golden, golden_memory_state, monkeypatch, name, least_entries):
    monkeypatch.setattr(links, "LEAST_ENTRIES", least_entries)
    case = golden(name)
    dnc = load(case)
    for key in [key for key in case if key.startswith("initial/") or key == "inputs"]:
        case[key].requires_grad_()
    memory = golden_memory_state(case, "initial")
    outputs, _ = dnc(case["inputs"], hidden(case, memory))
    loss = (outputs * case["loss_weights"]).sum()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-10)
    loss.backward()

    for key in [key for key in case if key.startswith("initial/") or key == "inputs"]:
        gradient = case[key].grad if case[key].grad is not None else torch.zeros_like(case[key])
        torch.testing.assert_close(gradient, case[f"grad/{key}"], **CLOSE)
    # The weights' gradients lie as DeepMind's weights do once they are loaded by the same mapping.
    gradients = {k.removeprefix("grad/"): v for k, v in case.items() if k.startswith("grad/weights/")}
    expected = dict(load({**case, **gradients}).named_parameters())
    for parameter_name, parameter in dnc.named_parameters():
        assert parameter.grad is not None
        if parameter_name.endswith(("bias_ih", "bias_hh")):
            continue
        torch.testing.assert_close(parameter.grad, expected[parameter_name].detach(), **CLOSE)
    blocks = case["grad/weights/lstm/b_gates"].chunk(4)
    bias = torch.cat([blocks[0], blocks[2], blocks[1], blocks[3]])
    torch.testing.assert_close(dnc.cells()[0][0].bias_ih.grad, bias, **CLOSE)


def test_the_arrays_precision_is_the_models(golden):
    case = {key: value.float() if torch.is_tensor(value) else value for key, value in golden("dnc_tiny").items()}
    dnc = load(case)
    assert {parameter.dtype for parameter in dnc.parameters()} == {torch.float32}
    outputs, _ = dnc(case["inputs"])
    torch.testing.assert_close(outputs, case["outputs"], rtol=0, atol=1e-4)


def test_a_missing_or_misshapen_array_is_named(golden):
    case = golden("dnc_tiny")
    weights = {k.removeprefix("weights/"): v.numpy() for k, v in case.items() if k.startswith("weights/")}
    sizes = {"nr_cells": 4, "cell_size": 3, "read_heads": 1, "write_heads": 3, "clip": 1}
    with pytest.raises(ValueError, match=r"memory_access/write_keys/w gives \[9, 8\], transposed; expected \[3, 8\]"):
        from_deepmind(weights, **{**sizes, "write_heads": 1})
    del weights["output_linear/b"]
    with pytest.raises(ValueError, match="weights lack 'output_linear/b'"):
        from_deepmind(weights, **sizes)
    with pytest.raises(ValueError, match="lstm/w_gates has 14 rows"):
        from_deepmind(weights, **{**sizes, "cell_size": 30})
