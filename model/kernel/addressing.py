"""Where to write and where to read, as `model/addressing.py` has it, for one row; a weighting is a vector [N].

Usage and allocation follow torch's operations one by one, because ties and near-ties between slots decide which of
them is written to.
"""

from dnc_serve.model.kernel.lanes import LANES, fma, inlined, like, root, spread
from dnc_serve.model.kernel.pointers import at, part, put
from dnc_serve.model.kernel.sorting import descending_order
from dnc_serve.model.kernel.vectors import dot, dots_with_rows, softmax


@inlined
def vector_norms(memory, norms, partial, slots, words, smooth):
    """The lengths [N] of a memory's words; smooth ones have 1e-6 under their root."""
    dots_with_rows(memory, memory, norms, partial, slots, words, True)
    for n in range(0, slots, LANES):
        squares = part(norms, n, slots)
        put(norms, n, slots, root(squares + like(squares, 1e-6)) if smooth else root(squares))


@inlined
def content_weighting(memory, norms, key, strength, weighting, partial, slots, words, smooth):
    """C(M, k, β): attention to the slots whose words are most like the key [W], which is multiplied by β in place."""
    square = dot(key, key, words)
    key_norm = spread(root(square + like(square, 1e-6)) if smooth else root(square))
    for w in range(0, words, LANES):
        put(key, w, words, part(key, w, words) * spread(strength))
    dots_with_rows(memory, key, weighting, partial, slots, words, False)
    for n in range(0, slots, LANES):
        both = key_norm * part(norms, n, slots)
        put(weighting, n, slots, part(weighting, n, slots) / (both + like(both, 1e-6)))
    softmax(weighting, slots)


@inlined
def update_usage(usage, writes, reads, free_gates, slots, write_heads, read_heads):
    """u_t, in place: a slot written to becomes used, a slot read with an open free gate becomes free again.

    `writes` [K, N] and `reads` [R, N] are those of the previous timestep.
    """
    for n in range(0, slots, LANES):
        used = part(usage, n, slots)
        one = like(used, 1.0)
        unwritten = one - part(writes, n, slots)
        for head in range(1, write_heads):
            unwritten = unwritten * (one - part(at(writes, head * slots), n, slots))
        used = used + (one - used) * (one - unwritten)
        # ψ_t: what the free gates leave of each slot
        retention = one - spread(free_gates[0]) * part(reads, n, slots)
        for head in range(1, read_heads):
            retention = retention * (one - spread(free_gates[head]) * part(at(reads, head * slots), n, slots))
        put(usage, n, slots, used * retention)


@inlined
def allocation_weighting(usage, allocation, keys, integers, slots, by_usage):
    """a_t: attention to free slots, the freest first, the lowest index among equals.

    `keys` [N] and `integers` are scratch. The running product is in float64, as torch's.
    """
    for n in range(0, slots, LANES):
        used = part(usage, n, slots)
        used = used * like(used, 1 - 1e-6) + like(used, 1e-6)  # rounded twice, as torch does
        put(keys, n, slots, like(used, 0.0) - used if by_usage else like(used, 1.0) - used)
    order = descending_order(keys, integers, slots)
    used_before = 1.0
    for place in range(slots):
        n = order[place]
        key, one = keys[n], like(keys[n], 1.0)
        free = one + key if by_usage else key
        allocation[n] = free * like(free, used_before)
        used_before *= like(key, 0.0) - key if by_usage else one - key


@inlined
def allocate_next(usage, gate, allocation, slots):
    """The usage that the next write head sees: what this one takes by `gate` is used."""
    for n in range(0, slots, LANES):
        used = part(usage, n, slots)
        taken = (like(used, 1.0) - used) * spread(gate) * part(allocation, n, slots)
        put(usage, n, slots, used + taken)


@inlined
def write_weighting(content, allocation, allocation_gate, write_gate, slots):
    """w^w_t = g^w (g^a a + (1 - g^a) c), in place of the content weighting; rounded as `torch.lerp` does."""
    gate, near_content = spread(allocation_gate), allocation_gate < 0.5
    for n in range(0, slots, LANES):
        c, a = part(content, n, slots), part(allocation, n, slots)
        apart = a - c
        mixed = fma(gate, apart, c) if near_content else fma(gate - like(gate, 1.0), apart, a)
        put(content, n, slots, spread(write_gate) * mixed)
