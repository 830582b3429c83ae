"""Where a sparse access memory is written and read: a few slots of many, each with its weight.

After Rae et al., "Scaling Memory-Augmented Neural Networks with Sparse Reads and Writes", NIPS 2016. A sparse weighting
is a pair of slots [..., E] and weights [..., E]; a slot may stand there more than once, and one of weight 0 stands for
none. Among equals the lowest slot comes first, always: so no result hangs on how a library orders them.

A step doesn't touch the memory itself. It tells what its slots hold from now on, and what is read is read from the
memory as it was, with those few slots put right.
"""

import math
from typing import Any

import torch
from torch import Tensor, rsub
from torch.nn.functional import pad

from dnc_serve.model.addressing import vector_norms

# δ of the paper: a slot whose weights sum to no more than this was not accessed.
ACCESSED = 0.005


def first_equal(slots: Tensor) -> Tensor:
    """For each entry [..., E] the first entry of the same slot: its number, [..., E]."""
    return first_true(slots.unsqueeze(-1) == slots.unsqueeze(-2))


def first_true(which: Tensor) -> Tensor:
    """The number of the first true entry in each row of [..., Q, E], 0 where there is none: [..., Q]."""
    return torch.argmax(which.to(torch.uint8), -1)


def is_first(first: Tensor) -> Tensor:
    """Whether an entry is the first of its slot, by what `first_equal` says: [..., E]."""
    return first == torch.arange(first.size(-1), device=first.device)


def summed(slots: Tensor, weights: Tensor) -> Tensor:
    """For each entry the weights of all entries of its slot, summed: [..., E]."""
    return torch.sum((slots.unsqueeze(-1) == slots.unsqueeze(-2)) * weights.unsqueeze(-2), -1)


def merged(slots: Tensor, weights: Tensor) -> Tensor:
    """The weights, those of one slot summed at its first entry, and 0 at its others."""
    return summed(slots, weights) * is_first(first_equal(slots))


def largest(slots: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """So many entries of the largest weights, in their order; those of weight 0 get slot 0, so that bits are equal."""
    order = torch.sort(slots, dim=-1, stable=True)[1]
    slots, weights = slots.gather(-1, order), weights.gather(-1, order)
    order = torch.sort(weights, dim=-1, descending=True, stable=True)[1][..., :count]
    slots, weights = slots.gather(-1, order), weights.gather(-1, order)
    return slots.masked_fill(weights == 0, 0), weights


def highest(scores: Tensor, count: int) -> Tensor:
    """The slots of the highest scores [B, R, N], the highest first and the lowest slot among equals: [B, R, count].

    Exact: whatever is among the highest stands in one of the runs of slots that have the highest maxima. So two short
    sorts do, and one pass over the scores.
    """
    slots = scores.size(2)
    run = 1
    while 4 * run * run * count <= slots:  # as many runs as candidates, or nearly
        run *= 2
    if slots % run != 0:
        scores = pad(scores, [0, run - slots % run], value=-math.inf)
    maxima = scores.unflatten(2, [-1, run]).amax(3)  # type: ignore[no-untyped-call]
    best = torch.sort(maxima, dim=-1, descending=True, stable=True)[1][..., :count]
    best = torch.sort(best, -1)[0]  # in their order, so that candidates stand in the order of slots
    candidates = (best.unsqueeze(3) * run + torch.arange(run, device=scores.device)).flatten(2)
    found = scores.gather(2, candidates)
    order = torch.sort(found, dim=-1, descending=True, stable=True)[1][..., :count]
    return candidates.gather(2, order)


def rows_of(table: Tensor, slots: Tensor) -> Tensor:
    """Of a table [B, N, X], the rows of slots [B, E]: [B, E, X]."""
    index = slots.unsqueeze(2).expand(-1, -1, table.size(2))
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        if table.requires_grad and not torch.compiler.is_compiling():
            rows: Tensor = Rows.apply(table, index)  # type: ignore[no-untyped-call]
            return rows
    return table.gather(1, index)


class Rows(torch.autograd.Function):
    """`gather`, whose own backward would keep the whole table, one for each timestep, only to know its shape.

    So what a training remembers for its way back are the slots that were touched, and no copy of the memory.
    """

    @staticmethod
    def forward(table: Tensor, index: Tensor) -> Tensor:
        return table.gather(1, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        table, index = inputs
        ctx.shape = table.shape
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).scatter_add(1, index, gradient), None


def rows_after(table: Tensor, changed: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    """As `rows_of`, of the table whose slots `changed` [B, A] have become `rows` [B, A, X]."""
    equal = slots.unsqueeze(2) == changed.unsqueeze(1)  # [B, E, A]
    return torch.where(equal.any(2, keepdim=True), rows_of(rows, first_true(equal)), rows_of(table, slots))


def put_rows(table: Tensor, slots: Tensor, rows: Tensor, in_place: bool) -> Tensor:
    """The table [B, N, X] whose slots [B, A] have become `rows` [B, A, X]; entries of one slot have equal rows."""
    index = slots.unsqueeze(2).expand(-1, -1, table.size(2))
    if in_place:
        return table.scatter_(1, index, rows)
    if rows.requires_grad:
        # A gradient that came back through each of a slot's entries would count as often: the first is enough.
        rows = torch.where(is_first(first_equal(slots)).unsqueeze(2), rows, rows.detach())
    return table.scatter(1, index, rows)


def write_weighting(
    last_access: Tensor, read_slots: Tensor, read_weights: Tensor, allocation_gate: Tensor, write_gate: Tensor
) -> tuple[Tensor, Tensor]:
    """w^W_t = α (γ w^R_{t-1} + (1 - γ) I^U): to where was read before, or to the least recently accessed slot.

    The paper has one head; of several, w^R_{t-1} is the mean. Both gates are [B, 1], the allocation gate 1 - γ and the
    write gate α. Returns slots and weights [B, R * S + 1], the least recently accessed slot last; the weights as
    `merged`.
    """
    heads = read_slots.size(1)
    least_recently_accessed = torch.argmin(last_access, 1, keepdim=True)  # I^U; the lowest among equals
    slots = torch.cat((read_slots.flatten(1).long(), least_recently_accessed), 1)
    read_before = rsub(allocation_gate, 1) * read_weights.flatten(1) / heads
    weights = write_gate * torch.cat((read_before, allocation_gate), 1)
    return slots, merged(slots, weights)


def written_words(memory: Tensor, slots: Tensor, weights: Tensor, write_vector: Tensor) -> Tensor:
    """M_t = (1 - R_t) ∘ M_{t-1} + w^W_t a_t^T, of the slots that `write_weighting` found: [B, A, W].

    R_t is 1 in the least recently accessed slot: it is erased before it is written. `write_vector` a_t is [B, W].
    """
    kept = (slots != slots[:, -1:]).unsqueeze(2)
    words = rows_of(memory, slots) * kept + weights.unsqueeze(2) * write_vector.unsqueeze(1)
    return rows_of(words, first_equal(slots))  # which has its slot's whole weight


def similar_slots(
    keys: Tensor, memory: Tensor, squared_norms: Tensor, changed: Tensor, words: Tensor, count: int, smooth: bool
) -> Tensor:
    """The slots whose words are most like each key [B, R, W]: [B, R, count], by cosine, exactly.

    The words of the slots `changed` [B, A] have become `words` [B, A, W]. A product of matrices, without gradient.
    """
    keys, words = keys.detach(), words.detach()
    key_norms = vector_norms(keys, smooth).unsqueeze(2)
    scores = torch.bmm(keys, memory.detach().transpose(1, 2))
    scores = scores / (key_norms * norms_of(squared_norms, smooth).unsqueeze(1) + 1e-6)
    now = torch.bmm(keys, words.transpose(1, 2)) / (key_norms * vector_norms(words, smooth).unsqueeze(1) + 1e-6)
    now = now.gather(2, first_equal(changed).unsqueeze(1).expand_as(now))
    return highest(scores.scatter_(2, changed.unsqueeze(1).expand_as(now), now), count)


def norms_of(squared_norms: Tensor, smooth: bool) -> Tensor:
    """As `vector_norms`."""
    return torch.sqrt(squared_norms + 1e-6) if smooth else torch.sqrt(squared_norms)


def content_weighting(keys: Tensor, strengths: Tensor, words: Tensor, smooth: bool) -> Tensor:
    """w^R_t(i) ∝ exp(β d(q_t, M_t(i))) over the slots that were found, d being the cosine.

    Keys q_t [B, R, W], strengths β [B, R], `words` [B, R, S, W] of the slots. Returns [B, R, S].
    """
    norms = vector_norms(keys, smooth).unsqueeze(2) * vector_norms(words, smooth)
    similarity = torch.sum(words * keys.unsqueeze(2), 3)
    return torch.softmax(strengths.unsqueeze(2) * similarity / (norms + 1e-6), 2)


def was_accessed(slots: Tensor, weights: Tensor, least: float = ACCESSED) -> Tensor:
    """Whether w^W(i) + Σ_heads w^R(i) > δ, for slots [B, E] with these weights: [B, E]."""
    return summed(slots, weights).gather(1, first_equal(slots)) > least
