from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from dnc_serve.model import addressing

CLOSE = {"rtol": 0, "atol": 1e-10}


def content_weighting(memory: Tensor, keys: Tensor, raw_strengths: Tensor, smooth: bool = True) -> Tensor:
    strengths = softplus(raw_strengths).unsqueeze(2)
    return addressing.content_weighting(memory, keys * strengths, addressing.vector_norms(keys, smooth), smooth)


@pytest.mark.parametrize("name", ["addressing_cosine_heads", "addressing_cosine_n64"])
def test_content_weighting_gives_deepminds_numbers(golden, name):
    case = golden(name)
    weights = content_weighting(case["memory"], case["keys"], case["strengths"])
    torch.testing.assert_close(weights, case["weights"], **CLOSE)


@pytest.mark.parametrize("name", ["addressing_freeness_n2", "addressing_freeness_n8", "addressing_freeness_n64"])
def test_usage_and_allocation_give_deepminds_numbers(golden, name):
    case = golden(name)
    usage = addressing.update_usage(
        case["prev_usage"], case["prev_write_weights"], case["free_gate"], case["prev_read_weights"]
    )
    torch.testing.assert_close(usage, case["usage"], **CLOSE)
    weightings = addressing.allocation_weightings(usage, case["write_gates"], by_usage=False)
    torch.testing.assert_close(weightings, case["allocation_weights"], **CLOSE)
    alone = addressing.allocation_weighting(case["direct/usage"], by_usage=False)
    torch.testing.assert_close(alone, case["direct/allocation"], **CLOSE)
    heads = addressing.allocation_weightings(case["direct/usage"], case["direct/write_gates"], by_usage=False)
    torch.testing.assert_close(heads, case["direct/allocation_weights"], **CLOSE)


@pytest.mark.parametrize("name", ["addressing_linkage_one_head", "addressing_linkage_three_heads"])
def test_links_give_deepminds_numbers(golden, name):
    case = golden(name)
    links, precedence = case["initial/link"], case["initial/precedence"]
    heads = links.size(1)
    for step, (write_weights, read_weights) in enumerate(zip(case["write_weights"], case["read_weights"], strict=True)):
        links = addressing.update_links(links, precedence, write_weights)
        precedence = addressing.update_precedence(precedence, write_weights)
        torch.testing.assert_close(links, case["link"][step], **CLOSE)
        torch.testing.assert_close(precedence, case["precedence"][step], **CLOSE)
        for head in range(heads):
            for mode, expected in ((head, "backward_weights"), (heads + head, "forward_weights")):
                modes = one_hot(torch.tensor(mode), 2 * heads + 1).double().expand(*read_weights.shape[:2], -1)
                followed = addressing.read_weighting(links, read_weights, torch.ones_like(read_weights), modes)
                torch.testing.assert_close(followed, case[expected][step][:, :, head], **CLOSE)


def test_equal_usages_are_allocated_lowest_index_first():
    usage = torch.tensor([[0.5, 0.0, 0.5, 0.0, 1.0]])
    weights = addressing.allocation_weighting(usage, by_usage=False)[0]
    assert weights[1] > 0.999
    assert weights[1] > weights[3] > weights[0] > weights[2] > weights[4]


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=7, max_size=7), min_size=1, max_size=3),
    st.floats(0, 1),
)
def test_allocation_without_a_sort_is_the_same(usage, scale):
    """Ties included: that of nearly all slots at a session's start above all."""
    tied = torch.tensor(usage, dtype=torch.float64) * scale
    apart = tied + torch.linspace(0, 1e-3, 7, dtype=torch.float64)
    for drawn, by_usage in ((tied, False), (apart, True)):
        expected = addressing.allocation_weighting(drawn, by_usage)
        with mock.patch("torch.onnx.is_in_onnx_export", return_value=True):
            without_sort = addressing.allocation_weighting(drawn, by_usage)
        torch.testing.assert_close(without_sort, expected, rtol=0, atol=1e-16)


def test_links_leave_the_matrix_they_were_made_from_alone():
    links = torch.rand(2, 1, 4, 4)
    before = links.clone()
    addressing.update_links(links, torch.rand(2, 1, 4), torch.rand(2, 1, 4))
    assert torch.equal(links, before)


def test_plain_norms_are_the_packages():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert addressing.vector_norms(vectors, smooth=False).tolist() == [5.0, 0.0]
    assert addressing.vector_norms(vectors, smooth=True)[1].item() == pytest.approx(1e-3)


def test_smooth_norms_have_a_bounded_gradient_at_zero_memory():
    memory = torch.zeros(1, 4, 3, requires_grad=True)
    content_weighting(memory, torch.ones(1, 1, 3), torch.full((1, 1), 5.0))[0, 0, 0].backward()
    assert memory.grad is not None
    assert 0 < memory.grad.abs().max() < 1e4


sizes = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 4),
        "slots": st.integers(1, 24),
        "words": st.integers(1, 8),
        "heads": st.sampled_from([1, 2, 3, 64]),
        "seed": st.integers(0, 2**31 - 1),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
    }
)


class Drawn:
    """Random values of the drawn sizes, with exact zeros and ones among the gates."""

    def __init__(self, shape: dict) -> None:
        self.generator = torch.Generator().manual_seed(shape["seed"])
        self.dtype = shape["dtype"]
        self.tolerance = 1e-5 if self.dtype == torch.float32 else 1e-12

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)

    def gates(self, *shape: int) -> Tensor:
        return (torch.rand(shape, generator=self.generator, dtype=self.dtype) * 1.5 - 0.25).clamp(0, 1)

    def weightings(self, *shape: int) -> Tensor:
        """Non-negative, summing to at most one, some of them one-hot."""
        weights = torch.softmax(self.normal(*shape) * 20, -1)
        return weights * self.gates(*shape[:-1]).unsqueeze(-1)


@given(sizes, st.sampled_from([-1e4, -10.0, 0.0, 10.0, 1e4]), st.sampled_from([0.0, 1e-3, 1.0, 1e3]))
def test_content_weightings_are_in_the_simplex(shape, strength, scale):
    drawn = Drawn(shape)
    memory = drawn.normal(shape["rows"], shape["slots"], shape["words"]) * scale
    keys = drawn.normal(shape["rows"], shape["heads"], shape["words"])
    strengths = torch.full((shape["rows"], shape["heads"]), strength, dtype=drawn.dtype)
    weights = content_weighting(memory, keys, strengths)
    assert weights.shape == (shape["rows"], shape["heads"], shape["slots"])
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(2), torch.ones_like(weights[:, :, 0]), rtol=0, atol=drawn.tolerance)


@given(sizes)
def test_usage_stays_between_zero_and_one(shape):
    drawn = Drawn(shape)
    rows, slots, heads = shape["rows"], shape["slots"], shape["heads"]
    usage = addressing.update_usage(
        drawn.gates(rows, slots),
        drawn.weightings(rows, heads, slots),
        drawn.gates(rows, 2),
        drawn.weightings(rows, 2, slots),
    )
    assert usage.shape == (rows, slots)
    assert (usage >= 0).all()
    assert (usage <= 1 + drawn.tolerance).all()


@given(sizes)
def test_allocations_are_weightings_and_nothing_goes_to_full_slots(shape):
    drawn = Drawn(shape)
    usage = drawn.gates(shape["rows"], shape["slots"])
    weights = addressing.allocation_weightings(usage, drawn.gates(shape["rows"], shape["heads"]), by_usage=False)
    assert weights.shape == (shape["rows"], shape["heads"], shape["slots"])
    assert (weights >= 0).all()
    assert (weights.sum(2) <= 1 + drawn.tolerance).all()
    full = (usage == 1).unsqueeze(1).expand_as(weights)
    assert (weights[full] < drawn.tolerance).all()


@given(sizes)
def test_links_have_no_diagonal_and_sum_to_at_most_one(shape):
    drawn = Drawn(shape)
    rows, slots, heads = shape["rows"], shape["slots"], min(shape["heads"], 3)
    links = torch.zeros(rows, heads, slots, slots, dtype=drawn.dtype)
    precedence = torch.zeros(rows, heads, slots, dtype=drawn.dtype)
    for _ in range(5):
        write_weights = drawn.weightings(rows, heads, slots)
        links = addressing.update_links(links, precedence, write_weights)
        precedence = addressing.update_precedence(precedence, write_weights)
        assert (links.diagonal(dim1=2, dim2=3) == 0).all()
        assert (links >= -drawn.tolerance).all()
        assert (links.sum(2) <= 1 + drawn.tolerance).all()
        assert (links.sum(3) <= 1 + drawn.tolerance).all()
        assert (precedence.sum(2) <= 1 + drawn.tolerance).all()


@given(sizes)
def test_reads_along_links_and_by_content_are_weightings(shape):
    drawn = Drawn(shape)
    rows, slots, heads = shape["rows"], shape["slots"], shape["heads"]
    links = torch.zeros(rows, 1, slots, slots, dtype=drawn.dtype)
    precedence = torch.zeros(rows, 1, slots, dtype=drawn.dtype)
    for _ in range(3):
        write_weights = drawn.weightings(rows, 1, slots)
        links = addressing.update_links(links, precedence, write_weights)
        precedence = addressing.update_precedence(precedence, write_weights)
    modes = torch.softmax(drawn.normal(rows, heads, 3) * 10, 2)
    weights = addressing.read_weighting(
        links, drawn.weightings(rows, heads, slots), drawn.weightings(rows, heads, slots), modes
    )
    assert weights.shape == (rows, heads, slots)
    assert (weights >= -drawn.tolerance).all()
    assert (weights.sum(2) <= 1 + drawn.tolerance).all()
