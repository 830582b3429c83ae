"""One access to the memory of one row: write, link, read."""

from dnc_serve.model.kernel.addressing import (
    allocate_next,
    allocation_weighting,
    content_weighting,
    update_usage,
    vector_norms,
    write_weighting,
)  # fmt: skip
from dnc_serve.model.kernel.lanes import LANES, fma, inlined, like, spread
from dnc_serve.model.kernel.links import update_and_follow, update_precedence
from dnc_serve.model.kernel.pointers import at, part, put
from dnc_serve.model.kernel.vectors import copy, softmax, weighted_rows
from dnc_serve.model.kernel.weights import padded

lanes_padded = inlined(padded)


def access_numbers(slots: int, write_heads: int, read_heads: int) -> int:
    """How many numbers an access needs beside the row."""
    return (4 + write_heads + 3 * read_heads) * padded(slots) + read_heads * LANES * LANES


@inlined
def access(
    memory,
    moved,
    links_before,
    interface,
    reads,
    norms,
    norms_known,
    scratch,
    integers,
    slots,
    words,
    read_heads,
    write_heads,
    smooth,
    by_usage,
):
    """Changes the row's memory in place and writes the read vectors [R, W].

    `memory` points to the row's `MemoryState`; where `moved` says so, its links are read from `links_before` instead.
    `interface` is the activated interface vector, and is used up. `norms` [N] are the lengths of the memory's words if
    `norms_known`, and are so afterwards. Returns a sum that is finite only if all links are.
    """
    # The row, as `StateLayout` packs it.
    links = at(memory, slots * words)  # [K, N, N]
    precedence = at(links, write_heads * slots * slots)  # [K, N]
    read_weights = at(precedence, write_heads * slots)  # [R, N]
    write_weights = at(read_weights, read_heads * slots)  # [K, N]
    usage = at(write_weights, write_heads * slots)  # [N]
    # The interface vector, as `interface_sections` has it.
    write_keys = interface  # [K, W]
    read_keys = at(write_keys, write_heads * words)  # [R, W]
    write_vectors = at(read_keys, read_heads * words)  # [K, W]
    write_strengths = at(write_vectors, write_heads * words)  # [K]
    read_strengths = at(write_strengths, write_heads)  # [R]
    erase_vectors = at(read_strengths, read_heads)  # [K, W]
    free_gates = at(erase_vectors, write_heads * words)  # [R]
    allocation_gates = at(free_gates, read_heads)  # [K]
    write_gates = at(allocation_gates, write_heads)  # [K]
    read_modes = at(write_gates, write_heads)  # [R, M]
    # Scratch: vectors [N], each in a place of its own.
    stride = lanes_padded(slots)
    used, keys, allocation, last = scratch, at(scratch, stride), at(scratch, 2 * stride), at(scratch, 3 * stride)
    written = at(scratch, 4 * stride)  # [K, N]
    previous_reads = at(written, write_heads * stride)  # [R, N]
    weights = at(previous_reads, read_heads * stride)  # [R, N], of this timestep's reading
    forward = at(weights, read_heads * stride)  # [R, N], what leads forward
    partial = at(forward, read_heads * stride)  # [R, 16, 16]
    number_of_modes = 1 + 2 * write_heads

    update_usage(usage, write_weights, read_weights, free_gates, slots, write_heads, read_heads)
    copy(usage, used, slots)
    if not norms_known:
        vector_norms(memory, norms, partial, slots, words, smooth)
    for head in range(write_heads):
        write = at(written, head * stride)
        allocation_weighting(used, allocation, keys, integers, slots, by_usage)
        allocate_next(used, allocation_gates[head] * write_gates[head], allocation, slots)
        key, strength = at(write_keys, head * words), write_strengths[head]
        content_weighting(memory, norms, key, strength, write, partial, slots, words, smooth)
        write_weighting(write, allocation, allocation_gates[head], write_gates[head], slots)
        copy(write, at(write_weights, head * slots), slots)

    write_words(memory, written, erase_vectors, write_vectors, slots, stride, words, write_heads)
    vector_norms(memory, norms, partial, slots, words, smooth)
    for head in range(read_heads):
        copy(at(read_weights, head * slots), at(previous_reads, head * stride), slots)
        modes, weighting = at(read_modes, head * number_of_modes), at(weights, head * stride)
        softmax(modes, number_of_modes)
        key, strength = at(read_keys, head * words), read_strengths[head]
        content_weighting(memory, norms, key, strength, weighting, partial, slots, words, smooth)
        for n in range(0, slots, LANES):
            content = part(weighting, n, slots)
            put(weighting, n, slots, content * spread(modes[2 * write_heads]))
            put(at(forward, head * stride), n, slots, like(content, 0.0))

    sum_of_links = like(memory[0], 0.0)
    for head in range(write_heads):
        write, matrix = at(written, head * stride), head * slots * slots
        copy(at(precedence, head * slots), last, slots)
        sum_of_links += update_and_follow(
            moved, at(links_before, matrix), at(links, matrix), write, last, previous_reads, read_modes, weights,
            forward, partial, slots, stride, write_heads, read_heads, head,
        )  # fmt: skip
        update_precedence(at(precedence, head * slots), write, slots)
    for head in range(read_heads):
        weighting = at(weights, head * stride)
        for n in range(0, slots, LANES):
            put(weighting, n, slots, part(weighting, n, slots) + part(at(forward, head * stride), n, slots))
        copy(weighting, at(read_weights, head * slots), slots)
        weighted_rows(weighting, memory, at(reads, head * words), slots, words)
    return sum_of_links


@inlined
def write_words(memory, written, erase_vectors, write_vectors, slots, stride, words, write_heads):
    """M_t = M ∘ Π (1 - w e) + Σ w v, over the write heads; for one head as M + w (v - M e)."""
    for n in range(slots):
        word = at(memory, n * words)
        for w in range(0, words, LANES):
            old = part(word, w, words)
            if write_heads == 1:
                change = fma(like(old, 0.0) - old, part(erase_vectors, w, words), part(write_vectors, w, words))
                put(word, w, words, fma(spread(written[n]), change, old))
            else:
                kept = old
                for head in range(write_heads):
                    weight, erase = spread(written[head * stride + n]), part(at(erase_vectors, head * words), w, words)
                    kept = kept * (like(old, 1.0) - weight * erase)
                for head in range(write_heads):
                    weight = spread(written[head * stride + n])
                    kept = fma(weight, part(at(write_vectors, head * words), w, words), kept)
                put(word, w, words, kept)
