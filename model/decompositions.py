"""Operations that a compiler would leave to a call for each row, taken apart into what it makes vector code of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Up to so many slots, ranking each against all others is faster than a sort of each row.
RANKED_SLOTS = 256


def decompositions(nr_cells: int) -> dict[Any, Callable[..., Any]]:
    """By operation, what stands for it in a program whose memory has so many slots."""
    replaced: dict[Any, Callable[..., Any]] = {torch.ops.aten.baddbmm.default: baddbmm_of_single_rows}
    if nr_cells <= RANKED_SLOTS:
        replaced[torch.ops.aten.sort.stable] = sort_by_rank
    return replaced


def sort_by_rank(values: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """`torch.sort`, stable, with the same results for numbers: each finds its place by comparison with all others."""
    values = values.movedim(dim, -1)
    places = torch.arange(values.size(-1), device=values.device)
    ours, others = values.unsqueeze(-1), values.unsqueeze(-2)
    before = (others > ours) if descending else (others < ours)
    before = before | ((others == ours) & (places.unsqueeze(0) < places.unsqueeze(1)))
    rank = before.to(values.dtype).sum(-1).to(torch.int64)
    ordered = torch.zeros_like(values).scatter(-1, rank, values)
    order = torch.zeros_like(rank).scatter(-1, rank, places.expand_as(rank))
    return ordered.movedim(-1, dim), order.movedim(-1, dim)


def baddbmm_of_single_rows(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`torch.baddbmm` where each matrix on the left is a single row [B, 1, N], as for the one read head of a model."""
    if left.size(1) != 1 or beta != 1 or alpha != 1:
        return NotImplemented  # type: ignore[no-any-return]  # the compiler then does as it would without this
    product: Tensor = (left.transpose(1, 2) * right).sum(1, keepdim=True)
    return added + product
