"""What stands for an operation in compiled code has its results."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dnc_serve.model.decompositions import (
    RANKED_SLOTS,
    baddbmm_of_single_rows,
    decompositions,
    sort_by_rank,
)


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 0.25, 1.0, 1 - 2**-24]), min_size=6, max_size=6), min_size=1),
    st.booleans(),
)
def test_ranking_is_a_stable_sort(rows: list[list[float]], descending: bool) -> None:
    values = torch.tensor(rows)
    for dim in (1, 0):
        expected = torch.sort(values, dim=dim, descending=descending, stable=True)
        ordered, order = sort_by_rank(values, stable=True, dim=dim, descending=descending)
        assert torch.equal(ordered, expected.values)
        assert torch.equal(order, expected.indices)


def test_products_of_single_rows_are_baddbmm() -> None:
    added, left, right = torch.randn(5, 1, 4), torch.randn(5, 1, 7), torch.randn(5, 7, 4)
    result = baddbmm_of_single_rows(added, left, right)
    assert torch.allclose(result, torch.baddbmm(added, left, right), atol=1e-6)
    assert baddbmm_of_single_rows(added, torch.randn(5, 2, 7), right) is NotImplemented


def test_many_slots_are_sorted_as_they_were() -> None:
    assert torch.ops.aten.sort.stable in decompositions(RANKED_SLOTS)
    assert torch.ops.aten.sort.stable not in decompositions(RANKED_SLOTS + 1)
