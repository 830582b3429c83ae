"""The tick: timesteps of a DNC of given sizes, for rows of a slab of states."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.interface import interface_sections
from dnc_serve.model.kernel.access import access, access_numbers
from dnc_serve.model.kernel.arithmetic import clamped, sigmoid, softplus, tanh
from dnc_serve.model.kernel.controller import GATES, GRU, LSTM, RNN_RELU, RNN_TANH, step_cell
from dnc_serve.model.kernel.lanes import LANES, flush_denormals, inlined, like
from dnc_serve.model.kernel.pointers import at, part, put
from dnc_serve.model.kernel.sorting import integers_needed
from dnc_serve.model.kernel.vectors import copy, product, sum_of
from dnc_serve.model.kernel.weights import BLOCK, padded
from dnc_serve.model.layout import StateLayout


class Tick(NamedTuple):
    """The function to compile, and the numbers and integers of scratch that it needs."""

    function: Callable[..., None]
    scratch: int
    integers: int


def make_tick(config: DNCConfig, wide_registers: bool) -> Tick:
    """The tick of a configuration. Its function is

    `tick(states, sources, targets, inputs, outputs, finite, weights, scratch, integers, rows, ticks)`

    and steps `rows` rows of states [., S] through `ticks` timesteps of inputs [T, B, I], each from the row numbered in
    sources [B] to the one numbered in targets [B], which may be the same. It writes outputs [T, B, O], and in finite
    [B] whether a row ends in finite numbers only; a sum of them that overflows counts as none. All else of the states
    is left alone, and a row's bits depend on nothing but its state and inputs.
    """
    # As numpy's: Numba would compile each helper anew for every Python integer that it is given.
    sizes: list[Any] = [
        np.int64(size)
        for size in (
            config.input_size, config.hidden_size, config.outputs, config.num_layers, config.num_hidden_layers,
            config.nr_cells, config.cell_size, config.read_heads, config.write_heads,
        )
    ]  # fmt: skip
    I, H, O, L, D, N, W, R, K = sizes  # noqa: E741, N806
    rnn = RNN_TANH if config.nonlinearity == "tanh" else RNN_RELU
    kind = {"lstm": LSTM, "gru": GRU, "rnn": rnn}[config.rnn_type]
    smooth, by_usage = config.cosine == "deepmind", config.allocation_order == "usage"
    shared, squash_keys = config.share_memory, config.key_activation == "tanh"
    clip_output, clip_all = config.clip, config.clip if config.clip_scope == "all" else 0.0  # 0: not clipped

    # A row of state, as `StateLayout` packs it.
    layout, num_memories = StateLayout(config), config.num_memories
    state_size, memories = layout.size, layout.experience_offset
    memory_size = (state_size - memories) // num_memories
    links, behind_links = N * W, N * W + K * N * N
    layer_size = D * H * (2 if kind == LSTM else 1)
    reads_at = L * layer_size
    # The interface vector: parts of one activation are neighbours.
    sections = interface_sections(config)
    vectors = sections["write_keys"] + sections["read_keys"] + sections["write_vectors"]
    strengths = vectors + K + R
    gates = strengths + sections["erase_vectors"] + R + 2 * K
    # Scratch of each row of a block: features with the previous hidden state behind them, a cell's gates, the interface
    # vector, the output, the lengths of the words in each memory, and what tells whether its state is finite.
    gate_columns, interface_columns, output_columns = padded(GATES[kind] * H), padded(sum(sections.values())), padded(O)
    gates_at = padded(max(I + R * W, H + R * W) + H)
    interface_at = gates_at + gate_columns
    output_at = interface_at + interface_columns
    norms_at = output_at + output_columns
    fault_at = norms_at + num_memories * padded(N)
    padded_slots = padded(N)
    row_size = fault_at + LANES
    shared_scratch = BLOCK * row_size  # of what is done row by row: the read vectors, and an access's own
    access_at = shared_scratch + padded(R * W)

    @inlined
    def begin(source, target):
        """Copies a row, but for its links: each memory's first access moves them."""
        copy(source, target, memories)
        for memory in range(memories, state_size, memory_size):
            copy(at(source, memory), at(target, memory), links)
            behind = memory + behind_links
            copy(at(source, behind), at(target, behind), memory_size - behind_links)

    @inlined
    def put_clipped(source, target, size, limit):
        for j in range(0, size, LANES):
            x = part(source, j, size)
            put(target, j, size, clamped(x, limit) if limit > 0 else x)

    @inlined
    def activate(interface):
        """Each part of the interface vector in its range, but for the read modes."""
        if squash_keys:
            for j in range(0, vectors, LANES):
                put(interface, j, vectors, tanh(part(interface, j, vectors)))
        for j in range(vectors, strengths, LANES):
            put(interface, j, strengths, softplus(part(interface, j, strengths)))
        for j in range(strengths, gates, LANES):
            put(interface, j, gates, sigmoid(part(interface, j, gates)))

    @inlined
    def end(state, fault):
        """A number that is zero only if all of the state is finite; its links were summed while they were followed."""
        total = sum_of(state, memories)
        for memory in range(memories, state_size, memory_size):
            behind = memory + behind_links
            total += sum_of(at(state, memory), links) + sum_of(at(state, behind), memory_size - behind_links)
        return fault + total * like(total, 0.0)

    def tick(states, sources, targets, inputs, outputs, finite, weights, scratch, integers, rows, ticks):
        flushed = flush_denormals(True)
        features = scratch
        read_vectors, access_scratch = at(scratch, shared_scratch), at(scratch, access_at)
        first = 0
        while first < rows:
            block = BLOCK if rows - first >= BLOCK else 1
            for r in range(block):
                row, source, target = at(scratch, r * row_size), sources[first + r], targets[first + r]
                row[fault_at] = like(row[0], 0.0)
                if source != target:
                    begin(at(states, source * state_size), at(states, target * state_size))
            for k in range(ticks):
                for r in range(block):
                    row, state = at(scratch, r * row_size), at(states, targets[first + r] * state_size)
                    copy(at(inputs, (k * rows + first + r) * I), row, I)
                    copy(at(state, reads_at), at(row, I), R * W)
                matrix = weights
                for layer in range(L):
                    width = H + R * W if layer > 0 else I + R * W
                    for depth in range(D):
                        hidden_at = layer * layer_size + depth * H
                        for r in range(block):
                            state = at(states, targets[first + r] * state_size)
                            copy(at(state, hidden_at), at(scratch, r * row_size + width), H)
                        gate_inputs = at(features, gates_at)
                        product(matrix, features, gate_inputs, width + H, gate_columns, block, row_size, wide_registers)
                        matrix = at(matrix, (width + H + 1) * gate_columns)
                        for r in range(block):
                            row, state = at(scratch, r * row_size), at(states, targets[first + r] * state_size)
                            hidden = at(state, hidden_at)
                            step_cell(kind, at(row, gates_at), at(hidden, D * H), at(row, width), row, H, clip_all)
                            put_clipped(row, hidden, H, clip_all)
                        width = H
                    for r in range(block):
                        put_clipped(at(scratch, r * row_size), at(scratch, r * row_size), H, clip_output)
                    interface = at(features, interface_at)
                    product(matrix, features, interface, H, interface_columns, block, row_size, wide_registers)
                    matrix = at(matrix, (H + 1) * interface_columns)
                    memory = 0 if shared else layer
                    memory_at = memories + memory * memory_size
                    first_access = k == 0 and (layer == 0 or not shared)
                    for r in range(block):
                        row, source, target = at(scratch, r * row_size), sources[first + r], targets[first + r]
                        state, norms = at(states, target * state_size), at(row, norms_at + memory * padded_slots)
                        activate(at(row, interface_at))
                        sum_of_links = access(
                            at(state, memory_at), first_access and source != target,
                            at(states, source * state_size + memory_at + links), at(row, interface_at), read_vectors,
                            norms, not first_access, access_scratch, integers, N, W, R, K, smooth, by_usage,
                        )  # fmt: skip
                        row[fault_at] += sum_of_links * like(sum_of_links, 0.0)
                        copy(read_vectors, at(row, H), R * W)
                        copy(read_vectors, at(state, reads_at), R * W)
                output = at(features, output_at)
                product(matrix, features, output, H + R * W, output_columns, block, row_size, wide_registers)
                for r in range(block):
                    output = at(outputs, (k * rows + first + r) * O)
                    put_clipped(at(scratch, r * row_size + output_at), output, O, clip_all)
            for r in range(block):
                fault = end(at(states, targets[first + r] * state_size), scratch[r * row_size + fault_at])
                finite[first + r] = fault == like(fault, 0.0)
            first += block
        flush_denormals(flushed)

    return Tick(tick, access_at + access_numbers(N, K, R), integers_needed(N))
