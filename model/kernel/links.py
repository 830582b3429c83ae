"""The temporal link matrix L [N, N] of one write head: made new and followed in one pass over it.

It is nearly all of a large state, so a row of it is read from memory once and written once for each timestep.
"""

from dnc_serve.model.kernel.lanes import LANES, fma, inlined, like, spread, total, without
from dnc_serve.model.kernel.pointers import at, part, put, store, totals
from dnc_serve.model.kernel.vectors import sum_of

TOGETHER = 4  # rows of L


@inlined
def new_links(old, kept, here, write, precedence):
    """L_t[i, j] = (1 - w[i] - w[j]) L[i, j] + w[i] p[j], with 1 - w[i] as `kept` and w[i] as `here`."""
    return fma(kept - write, old, here * precedence)


@inlined
def update_links(moved, before, after, write, precedence, i, slots):
    """One row of L_t, without a link from the slot to itself."""
    here = spread(write[i])
    kept = like(here, 1.0) - here
    for j in range(0, slots, LANES):
        old = part(before if moved else after, j, slots)
        put(after, j, slots, new_links(old, kept, here, part(write, j, slots), part(precedence, j, slots)))
    after[i] = like(write[i], 0.0)


@inlined
def update_and_follow_four(moved, before, after, write, precedence, read, backward, partial, mode_backward, i, slots):
    """Four rows of L_t from i on, each made new while it is followed as in `follow_four`."""
    row0, row1, row2, row3 = after, at(after, slots), at(after, 2 * slots), at(after, 3 * slots)
    old0 = before if moved else after
    old1, old2, old3 = at(old0, slots), at(old0, 2 * slots), at(old0, 3 * slots)
    w0, w1, w2, w3 = spread(write[i]), spread(write[i + 1]), spread(write[i + 2]), spread(write[i + 3])
    one = like(w0, 1.0)
    kept0, kept1, kept2, kept3 = one - w0, one - w1, one - w2, one - w3
    from0, from1 = spread(mode_backward * read[i]), spread(mode_backward * read[i + 1])
    from2, from3 = spread(mode_backward * read[i + 2]), spread(mode_backward * read[i + 3])
    to0 = to1 = to2 = to3 = like(w0, 0.0)
    for j in range(0, slots, LANES):
        w, p, reached = part(write, j, slots), part(precedence, j, slots), part(read, j, slots)
        l0 = new_links(part(old0, j, slots), kept0, w0, w, p)
        l1 = new_links(part(old1, j, slots), kept1, w1, w, p)
        l2 = new_links(part(old2, j, slots), kept2, w2, w, p)
        l3 = new_links(part(old3, j, slots), kept3, w3, w, p)
        if j == i // LANES * LANES:  # here are the links from slots to themselves
            l0, l1 = without(l0, i - j), without(l1, i + 1 - j)
            l2, l3 = without(l2, i + 2 - j), without(l3, i + 3 - j)
        put(row0, j, slots, l0)
        put(row1, j, slots, l1)
        put(row2, j, slots, l2)
        put(row3, j, slots, l3)
        to0, to1, to2, to3 = fma(l0, reached, to0), fma(l1, reached, to1), fma(l2, reached, to2), fma(l3, reached, to3)
        led = fma(l1, from1, fma(l0, from0, part(backward, j, slots)))
        put(backward, j, slots, fma(l3, from3, fma(l2, from2, led)))
    store(partial, 0, to0)
    store(partial, LANES, to1)
    store(partial, 2 * LANES, to2)
    store(partial, 3 * LANES, to3)


@inlined
def follow_four(links, read, backward, partial, mode_backward, i, slots):
    """Four rows from i on: adds to `backward` what leads from these slots to others, times its mode; and gives in
    `partial` [4, 16] what leads to them, Σ_j L[i, j] r[j], as lanes that are still to be added up."""
    row0, row1, row2, row3 = links, at(links, slots), at(links, 2 * slots), at(links, 3 * slots)
    from0, from1 = spread(mode_backward * read[i]), spread(mode_backward * read[i + 1])
    from2, from3 = spread(mode_backward * read[i + 2]), spread(mode_backward * read[i + 3])
    to0 = to1 = to2 = to3 = like(from0, 0.0)
    for j in range(0, slots, LANES):
        l0, l1, l2, l3 = part(row0, j, slots), part(row1, j, slots), part(row2, j, slots), part(row3, j, slots)
        reached = part(read, j, slots)
        to0, to1, to2, to3 = fma(l0, reached, to0), fma(l1, reached, to1), fma(l2, reached, to2), fma(l3, reached, to3)
        led = fma(l1, from1, fma(l0, from0, part(backward, j, slots)))
        put(backward, j, slots, fma(l3, from3, fma(l2, from2, led)))
    store(partial, 0, to0)
    store(partial, LANES, to1)
    store(partial, 2 * LANES, to2)
    store(partial, 3 * LANES, to3)


@inlined
def follow(links, read, backward, mode_backward, i, slots):
    """The same for row i alone, which returns what leads to it."""
    here = spread(mode_backward * read[i])
    to = like(here, 0.0)
    for j in range(0, slots, LANES):
        row = part(links, j, slots)
        to = fma(row, part(read, j, slots), to)
        put(backward, j, slots, fma(row, here, part(backward, j, slots)))
    return total(to)


@inlined
def update_and_follow(
    moved,
    before,
    after,
    write,
    precedence,
    reads,
    modes,
    backward,
    forward,
    partial,
    slots,
    stride,
    write_heads,
    read_heads,
    head,
):
    """L_t of write head `head`, and for each read head what its previous weighting [N] reaches along it.

    `after` is L_{t-1}, unless that is still to be moved there from `before`. The modes [R, M] weight what is added to
    `backward` and `forward`; these and `reads` lie `stride` numbers apart; `partial` is scratch [R, 16, 16]. Returns a
    sum that is finite only if all of L_t is.
    """
    number_of_modes = 1 + 2 * write_heads
    full = slots // LANES * LANES
    sums = spread(like(write[0], 0.0))
    for first in range(0, full, LANES):
        for i in range(first, first + LANES, TOGETHER):
            update_and_follow_four(
                moved, at(before, i * slots), at(after, i * slots), write, precedence, reads, backward,
                at(partial, (i - first) * LANES), modes[head], i, slots,
            )  # fmt: skip
            for r in range(1, read_heads):
                mode = modes[r * number_of_modes + head]
                block = at(partial, (r * LANES + i - first) * LANES)
                follow_four(
                    at(after, i * slots), at(reads, r * stride), at(backward, r * stride), block, mode, i, slots
                )
        for r in range(read_heads):
            to, mode = totals(at(partial, r * LANES * LANES)), modes[r * number_of_modes + write_heads + head]
            put(
                at(forward, r * stride),
                first,
                slots,
                fma(spread(mode), to, part(at(forward, r * stride), first, slots)),
            )
            sums = sums + to
    last = like(write[0], 0.0)
    for i in range(full, slots):
        row = at(after, i * slots)
        update_links(moved, at(before, i * slots), row, write, precedence, i, slots)
        for r in range(read_heads):
            mode = at(modes, r * number_of_modes + head)
            to = follow(row, at(reads, r * stride), at(backward, r * stride), mode[0], i, slots)
            forward[r * stride + i] = fma(mode[write_heads], to, forward[r * stride + i])
            last += to
    return total(sums) + last


@inlined
def update_precedence(precedence, write, slots):
    """p_t = (1 - Σ w) p + w: how much each slot was the last one written, in place."""
    kept = spread(like(write[0], 1.0) - sum_of(write, slots))
    for n in range(0, slots, LANES):
        put(precedence, n, slots, fma(kept, part(precedence, n, slots), part(write, n, slots)))
