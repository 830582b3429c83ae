"""Links with a backward of their own: the gradients of autograd, finite differences and, in whole nets, DeepMind's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnc_serve.model import DNC, addressing, links
from dnc_serve.model.links import Links, links_and_reads


def drawn(batch: int, slots: int, reads: int, writes: int) -> list[torch.Tensor]:
    """Links, precedence, write weights, read weights, content weights and modes; all may be anything."""
    shapes = [(writes, slots, slots), (writes, slots), (writes, slots), (reads, slots), (reads, slots)]
    tensors = [torch.randn(batch, *shape, dtype=torch.float64) for shape in [*shapes, (reads, 1 + 2 * writes)]]
    tensors[0].diagonal(dim1=2, dim2=3).zero_()
    return [tensor.requires_grad_() for tensor in tensors]


def autograds(link_matrix, precedence, write_weights, *others):
    made = addressing.update_links(link_matrix, precedence, write_weights)
    return made, addressing.read_weighting(made, *others)


@given(
    batch=st.integers(1, 3),
    slots=st.integers(1, 9),
    reads=st.integers(1, 4),
    writes=st.integers(1, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_results_and_gradients_are_autograds(batch, slots, reads, writes, seed):
    torch.manual_seed(seed)
    tensors = drawn(batch, slots, reads, writes)
    results, expected = Links.apply(*tensors), autograds(*tensors)
    directions = [torch.randn_like(tensor) for tensor in expected]
    for one, other in zip(results, expected, strict=True):
        assert torch.equal(one, other)
    found = torch.autograd.grad(results, tensors, directions)
    for one, other in zip(found, torch.autograd.grad(expected, tensors, directions), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("writes", [1, 2])
def test_gradients_and_their_gradients_are_finite_differences(writes):
    tensors = drawn(2, 4, 2, writes)
    assert torch.autograd.gradcheck(Links.apply, tensors)
    assert torch.autograd.gradgradcheck(Links.apply, tensors)


def test_reads_alone_lead_back_and_a_constant_matrix_gets_no_gradient():
    tensors = drawn(2, 4, 2, 1)
    tensors[0].requires_grad_(False)
    Links.apply(*tensors)[1].sum().backward()
    found = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    autograds(*tensors)[1].sum().backward()
    assert found[0] is tensors[0].grad is None
    for one, tensor in zip(found[1:], tensors[1:], strict=True):
        torch.testing.assert_close(one, tensor.grad)


def test_large_matrices_that_learn_take_it_and_no_others():
    slots = int(links.LEAST_ENTRIES**0.5)
    large, small = drawn(1, slots, 1, 1), drawn(1, slots - 1, 1, 1)
    assert links_and_reads(*large)[0].grad_fn.name() == "LinksBackward"
    assert links_and_reads(*small)[0].grad_fn.name() != "LinksBackward"
    with torch.no_grad():
        assert links_and_reads(*large)[0].grad_fn is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"write_heads": 3, "read_heads": 4, "stop_usage_gradient": False},
        {"num_layers": 2, "share_memory": False, "cosine": "dnc_package", "allocation_order": "usage"},
    ],
)
def test_a_whole_models_gradients_are_autograds(monkeypatch, options):
    dnc = DNC(3, 7, nr_cells=6, cell_size=4, **options).double()
    inputs = torch.randn(2, 6, 3, dtype=torch.float64)
    gradients = []
    for least in (0, 1 << 40):
        monkeypatch.setattr(links, "LEAST_ENTRIES", least)
        dnc.zero_grad()
        outputs, state = dnc(inputs)
        (outputs.square().sum() + state.memory[0].link_matrix.square().sum()).backward()
        gradients.append([parameter.grad for parameter in dnc.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
