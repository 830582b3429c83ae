"""A sparse memory whose slots are linked in the order in which they were written, as the paper's SDNC.

After the supplement of Rae et al. 2016, D. With write weighting w_t and precedence p_t, both sparse:

    p_t(i)    = (1 - Σ w_t) p_{t-1}(i) + w_t(i)
    N_t(i, j) = (1 - w_t(i)) N_{t-1}(i, j) + w_t(i) p_{t-1}(j), i ≠ j     slot i was written right after slot j
    P_t(j, i) = (1 - w_t(i)) P_{t-1}(j, i) + w_t(i) p_{t-1}(j)            the same, by the slot that came before
    b_t(j) = Σ_i N_t(i, j) w^R_{t-1}(i)       f_t(i) = Σ_j P_t(j, i) w^R_{t-1}(j)
    w^R_t = π_1 b_t + π_2 c_t + π_3 f_t

p_t and each row of N_t and P_t keep their Q largest entries, and w^R_t its S largest. By these equations P_t is N_t
turned around, but for what its rows dropped; and it would change in rows that a timestep has nothing to do with. So P_t
is kept as its slots alone, `next_slots`, and its weights are looked up in N_t: both agree always, and a timestep
changes the rows of slots that it wrote and of those written before.
"""

from typing import NamedTuple

import torch
from torch import Tensor, rsub

from dnc_serve.model import sparse_addressing as addressing
from dnc_serve.model.interface import SparseInterface
from dnc_serve.model.sparse_access import SparseAccess, change_of, changed, sparse_part, words_at
from dnc_serve.model.state import LinkedMemoryState, Memory, SparseMemoryState, tensors_of


class Links(NamedTuple):
    """The links of a `LinkedMemoryState`, with integers as indices."""

    precedence_slots: Tensor  # [B, Q]
    precedence: Tensor  # [B, Q]
    previous_slots: Tensor  # [B, N, Q]
    weights: Tensor  # [B, N, Q]
    next_slots: Tensor  # [B, N, Q]


class LinkChange(NamedTuple):
    """What a timestep does to them: rows of N_t for the A slots that it wrote, rows of P_t for those written before."""

    slots: Tensor  # [B, A], int64
    previous_slots: Tensor  # [B, A, Q]
    weights: Tensor  # [B, A, Q]
    earlier: Tensor  # [B, Q], int64
    next_slots: Tensor  # [B, Q, Q]
    precedence_slots: Tensor  # [B, Q]
    precedence: Tensor  # [B, Q]


class LinkedSparseAccess(SparseAccess):
    """Writes to a sparse memory, links what was written, and reads by content or along the links."""

    def access(self, interface: SparseInterface, memory: Memory, in_place: bool = False) -> tuple[Tensor, Memory]:
        """The read vectors [B, R * W], and the memory after this timestep."""
        state, links = sparse_part(memory), links_of(memory)
        slots, write_weights = addressing.write_weighting(
            state.last_access, state.read_slots, state.sparse_read_weights,
            interface.allocation_gate, interface.write_gate,
        )  # fmt: skip
        words = addressing.written_words(state.memory, slots, write_weights, interface.write_vector)
        linked = change_links(links, slots, write_weights)
        found = addressing.similar_slots(
            interface.read_keys, state.memory, state.squared_norms, slots, words, self.sparse_reads, self.smooth
        )
        content = addressing.content_weighting(
            interface.read_keys, interface.read_strengths, words_at(state, slots, words, found), self.smooth
        )
        read_slots, read_weights = read_weighting(links, linked, state, found, content, interface.read_modes)
        read_words = words_at(state, slots, words, read_slots)
        read_vectors = torch.sum(read_weights.unsqueeze(3) * read_words, 2).flatten(1)
        change = change_of(state, slots, write_weights, words, read_slots, read_weights)
        return read_vectors, with_links(changed(state, change, in_place), links, linked, in_place)


def links_of(memory: Memory) -> Links:
    """The links of a memory that has some."""
    tensors = tensors_of(memory)
    return Links(tensors[6].long(), tensors[7], tensors[8], tensors[9], tensors[10])


def change_links(links: Links, slots: Tensor, write_weights: Tensor) -> LinkChange:
    """What a write weighting, slots [B, A] and weights as `merged`, does to the links."""
    batch, entries, count = slots.size(0), slots.size(1), links.precedence.size(1)
    first = addressing.first_equal(slots)

    # N_t, rows i that were written. A link has the slot that it comes from, and a row no link to itself.
    weights = write_weights.unsqueeze(2)
    before = addressing.rows_of(links.previous_slots, slots).long()
    kept = rsub(weights, 1) * addressing.rows_of(links.weights, slots)
    others = links.precedence_slots.unsqueeze(1).expand(batch, entries, count)
    added = weights * links.precedence.unsqueeze(1) * (others != slots.unsqueeze(2))
    candidates, strengths = torch.cat((before, others), 2), torch.cat((kept, added), 2)
    row_slots, row_weights = addressing.largest(candidates, addressing.merged(candidates, strengths), count)
    row_slots, row_weights = addressing.rows_of(row_slots, first), addressing.rows_of(row_weights, first)

    # P_t, rows j that were written before: slots that came after them already, and those that did so now.
    earlier = links.precedence_slots
    after = addressing.rows_of(links.next_slots, earlier).long()
    candidates = torch.cat((after, slots.unsqueeze(1).expand(batch, count, entries)), 2)
    link = link_weights(
        links, slots, row_slots, row_weights, candidates.flatten(1),
        earlier.unsqueeze(2).expand_as(candidates).flatten(1),
    ).view(batch, count, -1)  # fmt: skip
    once = addressing.is_first(addressing.first_equal(candidates))
    linked_now = (links.precedence > 0).unsqueeze(2) & (write_weights > 0).unsqueeze(1)
    once = once & torch.cat((torch.ones_like(after, dtype=torch.bool), linked_now), 2)
    next_slots, link = addressing.largest(candidates, link.detach() * once, count)
    # A row that isn't full is filled up with its own slot, to which it has no link.
    next_slots = torch.where(link > 0, next_slots, earlier.unsqueeze(2))
    next_slots = addressing.rows_of(next_slots, addressing.first_equal(earlier))

    kept_share = rsub(torch.sum(write_weights, 1, keepdim=True), 1)
    candidates = torch.cat((earlier, slots), 1)
    strengths = torch.cat((kept_share * links.precedence, write_weights), 1)
    precedence_slots, precedence = addressing.largest(candidates, addressing.merged(candidates, strengths), count)
    return LinkChange(slots, row_slots, row_weights, earlier, next_slots, precedence_slots, precedence)


def link_weights(
    links: Links, changed: Tensor, row_slots: Tensor, row_weights: Tensor, later: Tensor, earlier: Tensor
) -> Tensor:
    """N_t(i, j) for slots i in `later` [B, E] and j in `earlier` [B, E]; the rows `changed` [B, A] are new: [B, E]."""
    before = addressing.rows_after(links.previous_slots, changed, row_slots.to(links.previous_slots.dtype), later)
    weights = addressing.rows_after(links.weights, changed, row_weights, later)
    return torch.sum(weights * (before == earlier.unsqueeze(2)), 2)


def read_weighting(
    links: Links, linked: LinkChange, state: SparseMemoryState, found: Tensor, content: Tensor, read_modes: Tensor
) -> tuple[Tensor, Tensor]:
    """w^R_t: from where each head read before, backward or forward along the links, or by content.

    The modes [B, R, 3] are backward, forward, content. `found` [B, R, S] are the slots of `content`. Returns the
    slots and weights [B, R, S] that are largest.
    """
    batch, heads, count = found.size(0), found.size(1), found.size(2)
    slots = state.read_slots.flatten(1).long()  # [B, R * S]
    read_before = state.sparse_read_weights.flatten(1).unsqueeze(2)
    previous = addressing.rows_after(
        links.previous_slots, linked.slots, linked.previous_slots.to(links.previous_slots.dtype), slots
    ).long()
    backward = addressing.rows_after(links.weights, linked.slots, linked.weights, slots) * read_before
    following = addressing.rows_after(
        links.next_slots, linked.earlier, linked.next_slots.to(links.next_slots.dtype), slots
    ).long()
    from_slots = slots.unsqueeze(2).expand_as(following)
    forward = link_weights(
        links, linked.slots, linked.previous_slots, linked.weights, following.flatten(1), from_slots.flatten(1)
    ).view_as(following)
    forward = forward * read_before
    modes = read_modes.unsqueeze(3).split_with_sizes([1, 1, 1], 2)  # [B, R, 1, 1] each
    candidates = torch.cat((previous.view(batch, heads, -1), following.view(batch, heads, -1), found), 2)
    weights = torch.cat(
        (
            backward.view(batch, heads, -1) * modes[0].squeeze(3),
            forward.view(batch, heads, -1) * modes[1].squeeze(3),
            content * modes[2].squeeze(3),
        ),
        2,
    )
    return addressing.largest(candidates, addressing.merged(candidates, weights), count)


def with_links(state: SparseMemoryState, links: Links, linked: LinkChange, in_place: bool) -> LinkedMemoryState:
    """The whole memory: a sparse one's part after its change, and the links after theirs."""
    integers = links.previous_slots.dtype
    return LinkedMemoryState(
        state.memory,
        state.squared_norms,
        state.last_access,
        state.time,
        state.read_slots,
        state.sparse_read_weights,
        linked.precedence_slots.to(integers),
        linked.precedence,
        addressing.put_rows(links.previous_slots, linked.slots, linked.previous_slots.to(integers), in_place),
        addressing.put_rows(links.weights, linked.slots, linked.weights, in_place),
        addressing.put_rows(links.next_slots, linked.earlier, linked.next_slots.to(integers), in_place),
    )
