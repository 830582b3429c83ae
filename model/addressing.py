"""Where to write and where to read: the weightings over memory slots, after Graves et al., Nature 2016, Methods.

The order of operations and the epsilons are those of DeepMind's code, so that ties between slots fall as they do there.
`rsub(x, 1)` is 1 - x, written so because TorchScript makes three operations of the other.
"""

import torch
from torch import Tensor, rsub
from torch.nn.functional import pad


def vector_norms(vectors: Tensor, smooth: bool) -> Tensor:
    """Lengths over the last dimension; smooth ones have a bounded gradient at zero, where plain ones have none."""
    if smooth:
        return torch.sqrt(torch.sum(vectors * vectors, -1) + 1e-6)
    return torch.norm(vectors, p=2, dim=-1)  # type: ignore[no-any-return]


def content_weighting(memory: Tensor, keys: Tensor, key_norms: Tensor, smooth: bool) -> Tensor:
    """Attention to the slots whose words are most like each key, C(M, k, β).

    `keys` [B, heads, W] come multiplied by their strengths β, `key_norms` [B, heads] are of the keys alone.
    Returns [B, heads, N].
    """
    similarity = torch.bmm(keys, memory.transpose(1, 2))
    norms = key_norms.unsqueeze(2) * vector_norms(memory, smooth).unsqueeze(1)
    return torch.softmax(similarity / (norms + 1e-6), 2)


def update_usage(usage: Tensor, write_weights: Tensor, free_gates: Tensor, read_weights: Tensor) -> Tensor:
    """u_t: a slot written to becomes used, a slot read with an open free gate [B, R] becomes free again.

    All weights are those of the previous timestep. Returns [B, N].
    """
    written = rsub(_product_over_heads(rsub(write_weights, 1)), 1)
    usage = usage + rsub(usage, 1) * written
    # ψ_t, the retention: what the free gates leave of each slot
    return usage * _product_over_heads(rsub(free_gates.unsqueeze(2) * read_weights, 1))


def allocation_weighting(usage: Tensor, by_usage: bool) -> Tensor:
    """a_t: attention to free slots, the freest first, the lowest index among equals.

    `by_usage` sorts as the `dnc` package does, where the order among equals is undefined. Returns [B, N].
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        if torch.onnx.is_in_onnx_export():
            return _allocation_without_order(usage, by_usage)
    sorted_usage, sorted_nonusage, order = sorted_by_usage(usage, by_usage)
    used_before = torch.cumprod(pad(sorted_usage, (1, -1), value=1.0), 1)
    sorted_allocation = sorted_nonusage * used_before
    return torch.scatter(sorted_allocation, 1, order, sorted_allocation)


def sorted_by_usage(usage: Tensor, by_usage: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Usage and nonusage in the order in which slots are allocated, and that order; each [B, N]."""
    usage = usage * (1 - 1e-6) + 1e-6  # keeps the running product and its gradient away from zero
    if by_usage:
        sorted_usage, order = torch.topk(usage, usage.size(1), dim=1, largest=False)
        return sorted_usage, rsub(sorted_usage, 1), order
    # Rounding decides here: usages too close to tell apart by nonusage are ties, and the sort is stable.
    sorted_nonusage, order = torch.sort(rsub(usage, 1), dim=1, descending=True, stable=True)
    return rsub(sorted_nonusage, 1), sorted_nonusage, order


def _allocation_without_order(usage: Tensor, by_usage: bool) -> Tensor:
    """The same without a stable sort and a running product, which ONNX lacks.

    Each slot is compared with all others: N² work, many times slower from some dozens of slots on.
    """
    usage = usage * (1 - 1e-6) + 1e-6
    nonusage = rsub(usage, 1)
    rank = usage if by_usage else -nonusage
    ours, others = rank.unsqueeze(2), rank.unsqueeze(1)
    slots = torch.arange(usage.size(1), device=usage.device)
    earlier = slots.unsqueeze(0) < slots.unsqueeze(1)  # [N, N], the other's index below ours
    before = (others < ours) | ((others == ours) & earlier)  # [B, N, N]
    used = usage if by_usage else rsub(nonusage, 1)
    return nonusage * torch.prod(torch.where(before, used.unsqueeze(1), 1.0), 2)


def allocation_weightings(usage: Tensor, gates: Tensor, by_usage: bool) -> Tensor:
    """Allocation for write heads that choose one after the other, each seeing as used what those before it took.

    `gates` [B, K] are allocation gate times write gate. Returns [B, K, N].
    """
    weightings = [allocation_weighting(usage, by_usage)]
    for head in range(gates.size(1) - 1):
        usage = usage + rsub(usage, 1) * gates[:, head : head + 1] * weightings[head]
        weightings.append(allocation_weighting(usage, by_usage))
    return torch.stack(weightings, 1) if len(weightings) > 1 else weightings[0].unsqueeze(1)


def update_links(link_matrix: Tensor, precedence: Tensor, write_weights: Tensor) -> Tensor:
    """L_t[i, j] = (1 - w[i] - w[j]) L[i, j] + w[i] p[j], without links from a slot to itself. Returns [B, K, N, N].

    The largest tensors of a step: two passes over them, as (1 - w[i]) L[i, j] + w[i] p[j] is one `lerp`.
    """
    links = torch.lerp(link_matrix, precedence.unsqueeze(2), write_weights.unsqueeze(3))
    links = links.addcmul_(link_matrix, write_weights.unsqueeze(2), value=-1)
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        if torch.onnx.is_in_onnx_export():  # which has no writing to a diagonal
            return links.masked_fill(torch.eye(links.size(3), dtype=torch.bool, device=links.device), 0.0)
    links.diagonal(dim1=2, dim2=3).zero_()
    return links


def update_precedence(precedence: Tensor, write_weights: Tensor) -> Tensor:
    """p_t = (1 - Σ w) p + w: how much each slot was the last one written. Returns [B, K, N]."""
    kept = rsub(torch.sum(write_weights, 2, keepdim=True), 1)
    return torch.addcmul(write_weights, kept, precedence)


def read_weighting(link_matrix: Tensor, read_weights: Tensor, content_weights: Tensor, read_modes: Tensor) -> Tensor:
    """w^r_t: from where each head read before, backward or forward along the links, or by content.

    The M modes [B, R, M] of a head are backward for each write head, forward for each, content. `read_weights` are the
    previous timestep's. Modes are applied before the links are followed, which sums in the same matrix product.
    Returns [B, R, N].
    """
    write_heads = link_matrix.size(1)
    weights = read_modes[:, :, 2 * write_heads :] * content_weights
    for head in range(write_heads):
        links = link_matrix[:, head]
        backward_mode = read_modes[:, :, head : head + 1]
        forward_mode = read_modes[:, :, write_heads + head : write_heads + head + 1]
        weights = torch.baddbmm(weights, backward_mode * read_weights, links)
        weights = torch.baddbmm(weights, forward_mode * read_weights, links.transpose(1, 2))
    return weights


def _product_over_heads(factors: Tensor) -> Tensor:
    """[B, heads, N] to [B, N]."""
    if factors.size(1) == 1:
        return factors.squeeze(1)
    return torch.prod(factors, 1)
