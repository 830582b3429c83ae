"""Each helper of the kernel does for one row what `model/addressing.py` and torch do for many."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dnc_serve.model import addressing
from dnc_serve.model.kernel import access, arithmetic, controller, links, sorting, vectors
from dnc_serve.model.kernel import addressing as row
from dnc_serve.model.kernel.lanes import largest, spread, total
from dnc_serve.model.kernel.pointers import part, put, store, totals
from dnc_serve.model.kernel.weights import pack_matrix, padded
from tests.model.kernel.native import native as _native

native = cache(_native)
PRECISIONS = [np.float32, np.float64]
# Relative to the largest number: some units in the last place, of sums of as many numbers as there are here.
CLOSE = {np.float32: 3e-6, np.float64: 1e-13}
sizes, seeds = st.integers(1, 70), st.integers(0, 2**32 - 1)
# Compiling takes longer than all examples; whole ticks are tried in float64 too.
precisions = st.just(np.float32)


def assert_close(found: Any, expected: Any, dtype: Any) -> None:
    expected = expected.numpy() if isinstance(expected, Tensor) else expected
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= CLOSE[dtype] * max(1, np.abs(expected).max())


class Numbers:
    """Random numbers of a precision, as arrays that torch sees too."""

    def __init__(self, seed: int, dtype: Any) -> None:
        self._random, self._dtype = np.random.default_rng(seed), dtype

    def normal(self, *shape: int) -> np.ndarray:
        return self._random.standard_normal(shape).astype(self._dtype)

    def gates(self, *shape: int) -> np.ndarray:
        return self._random.random(shape).astype(self._dtype)

    def weighting(self, *shape: int) -> np.ndarray:
        weights = self.gates(*shape)
        return (weights / weights.sum(-1, keepdims=True) * self.gates(*shape[:-1], 1)).astype(self._dtype)

    def scratch(self, size: int) -> np.ndarray:
        return np.full(size, np.nan, self._dtype)


def tensors(*arrays: np.ndarray) -> list[Tensor]:
    """As a batch of one row."""
    return [torch.from_numpy(array.copy())[None] for array in arrays]


FUNCTIONS = {
    "exp": (arithmetic.exp, torch.exp, (-80, 80)),
    "tanh": (arithmetic.tanh, torch.tanh, (-20, 20)),
    "sigmoid": (arithmetic.sigmoid, torch.sigmoid, (-80, 80)),
    # torch's gives up at 20, where it is right to 2e-9 only
    "softplus": (arithmetic.softplus, lambda x: torch.nn.functional.softplus(x, threshold=700), (-80, 80)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_elementwise_functions_equal_torchs(name, dtype):
    function, expected, (low, high) = FUNCTIONS[name]

    def of_both(x, lanes, numbers, size):
        for i in range(0, size, 16):
            put(lanes, i, size, function(part(x, i, size)))
        for i in range(size):
            numbers[i] = function(x[i])

    x = np.concatenate([np.linspace(low, high, 4001), np.linspace(-1, 1, 2000), [0.0, math.nan]]).astype(dtype)
    by_lanes, by_numbers = np.empty_like(x), np.empty_like(x)
    native(of_both, "nnns", dtype)(x, by_lanes, by_numbers, len(x))
    assert np.array_equal(by_lanes, by_numbers, equal_nan=True)
    assert np.isnan(by_lanes[-1])
    true = expected(torch.from_numpy(x[:-1]).double()).numpy()
    least = np.finfo(np.float32).tiny if dtype == np.float32 else 1e-300
    if name == "tanh" and dtype == np.float64:
        least = 1.0  # near zero it is as good as 1 - (1 - x)
    relative = np.abs(by_lanes[:-1] - true) / np.maximum(np.abs(true), least)
    assert relative.max() <= (5e-7 if dtype == np.float32 else 2e-15)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_softplus_and_exp_of_what_is_beyond_all_bounds(dtype):
    def through(x, y):
        y[0], y[1] = arithmetic.exp(x[0]), arithmetic.softplus(x[0])

    y = np.zeros(2, dtype)
    native(through, "nn", dtype)(np.array([-1e30], dtype), y)
    assert 0 <= y[0] < 1e-37 and 0 <= y[1] < 1e-37
    native(through, "nn", dtype)(np.array([1e30], dtype), y)
    assert np.isfinite(y[0]) and y[1] == np.array(1e30, dtype)


@given(seed=seeds, size=sizes, dtype=precisions)
def test_sums_and_softmax(seed, size, dtype):
    numbers = Numbers(seed, dtype)
    x, y, found = numbers.normal(size), numbers.normal(size), numbers.scratch(2)

    native(SUMS, "nnns", dtype)(x, y, found, size)
    assert_close(found, np.array([x @ y, x.sum()]), dtype)
    expected = torch.softmax(torch.from_numpy(x), 0)
    native(vectors.softmax, "ns", dtype)(x, size)
    assert_close(x, expected, dtype)


def SUMS(x, y, found, size):
    found[0], found[1] = vectors.dot(x, y, size), vectors.sum_of(x, size)


def TREES(rows, found):
    store(found, 0, totals(rows))
    for r in range(16):
        found[16 + r] = total(part(rows, 16 * r, 256))
        found[32 + r] = largest(part(rows, 16 * r, 256))
    put(found, 48, 64, spread(rows[3]))


@given(seed=seeds, dtype=precisions)
def test_sixteen_sums_at_once_have_the_bits_of_each_alone(seed, dtype):
    rows, found = Numbers(seed, dtype).normal(16, 16), np.zeros(64, dtype)
    native(TREES, "nn", dtype)(rows, found)
    assert np.array_equal(found[:16], found[16:32])
    assert_close(found[:16], rows.sum(1), dtype)
    assert np.array_equal(found[32:48], rows.max(1))
    assert np.all(found[48:] == rows[0, 3])


@given(seed=seeds, size=sizes, dtype=precisions)
def test_a_copy_touches_nothing_else(seed, size, dtype):
    x, y = Numbers(seed, dtype).normal(size), np.full(size + 40, 7, dtype)
    native(vectors.copy, "nns", dtype)(x, y, size)
    assert np.array_equal(y[:size], x)
    assert np.all(y[size:] == 7)


@given(seed=seeds, inputs=st.integers(1, 30), outputs=st.integers(1, 150), wide=st.booleans(), dtype=precisions)
def test_products_have_the_same_bits_for_one_row_and_for_four(seed, inputs, outputs, wide, dtype):
    numbers = Numbers(seed, dtype)
    weight, bias, x = numbers.normal(outputs, inputs), numbers.normal(outputs), numbers.normal(4, inputs)
    columns = padded(outputs)
    stride = inputs + columns
    packed = np.concatenate(pack_matrix(weight, bias, dtype))
    four, alone = np.zeros((4, stride), dtype), np.zeros((4, stride), dtype)
    four[:, :inputs] = alone[:, :inputs] = x

    multiply = native(PRODUCT, "nnsssssf", dtype)
    multiply(packed, four, inputs, inputs, columns, 4, stride, wide)
    for r in range(4):
        multiply(packed, alone[r], inputs, inputs, columns, 1, stride, wide)
    assert np.array_equal(four, alone)
    assert_close(four[:, inputs : inputs + outputs], x @ weight.T + bias, dtype)


def PRODUCT(weights, x, y_at, inputs, columns, rows, stride, wide):
    vectors.product(weights, x, vectors.at(x, y_at), inputs, columns, rows, stride, wide)


@given(seed=seeds, slots=sizes, words=st.integers(1, 40), smooth=st.booleans(), dtype=precisions)
def test_content_weighting(seed, slots, words, smooth, dtype):
    numbers = Numbers(seed, dtype)
    memory, key = numbers.normal(slots, words), numbers.normal(words)
    strength = dtype(3 * numbers.gates(1)[0])
    norms, weighting, partial = numbers.scratch(slots), numbers.scratch(slots), numbers.scratch(256)
    m, k = tensors(memory, key[None])
    expected = addressing.content_weighting(m, k * float(strength), addressing.vector_norms(k, smooth), smooth)[0, 0]
    native(row.vector_norms, "nnnssf", dtype)(memory, norms, partial, slots, words, smooth)
    assert_close(norms, addressing.vector_norms(m, smooth)[0], dtype)
    native(row.content_weighting, "nnnxnnssf", dtype)(
        memory, norms, key, strength, weighting, partial, slots, words, smooth
    )
    assert_close(weighting, expected, dtype)


heads = st.integers(1, 3)


@given(seed=seeds, slots=sizes, write_heads=heads, read_heads=heads, dtype=precisions)
def test_usage_has_torchs_bits(seed, slots, write_heads, read_heads, dtype):
    numbers = Numbers(seed, dtype)
    usage, gates = numbers.gates(slots), numbers.gates(read_heads)
    writes, reads = numbers.weighting(write_heads, slots), numbers.weighting(read_heads, slots)
    expected = addressing.update_usage(*tensors(usage, writes, gates, reads))[0]
    native(row.update_usage, "nnnnsss", dtype)(usage, writes, reads, gates, slots, write_heads, read_heads)
    assert np.array_equal(usage, expected.numpy())


few_or_many = st.one_of(sizes, st.integers(500, 600))


@st.composite
def usages(draw, slots=few_or_many):
    """With ties, more often than not."""
    numbers = Numbers(draw(seeds), np.float32)
    usage = numbers.gates(draw(slots))
    kinds = draw(st.sampled_from([0, 1, 2, 4, 100]))
    return np.round(usage * kinds) / np.float32(kinds) if kinds else usage


def ALLOCATE(usage, allocation, keys, integers, slots, by_usage):
    row.allocation_weighting(usage, allocation, keys, integers, slots, by_usage)


@given(usage=usages(), by_usage=st.booleans())
def test_allocation_has_torchs_bits_ties_included(usage, by_usage):
    slots = len(usage)
    expected = addressing.allocation_weighting(torch.from_numpy(usage)[None], by_usage)[0].numpy()
    allocation, keys = np.full(slots, np.nan, np.float32), np.zeros(padded(slots), np.float32)
    integers = np.zeros(sorting.integers_needed(slots), np.int32)
    native(ALLOCATE, "nnnisf", np.float32)(usage, allocation, keys, integers, slots, by_usage)
    if by_usage:  # torch leaves the order among equals open
        allocation, expected = np.sort(allocation), np.sort(expected)
    tiny = np.finfo(np.float32).tiny  # the product over used slots may be too small for a normal number
    assert np.array_equal(allocation[allocation > tiny], expected[allocation > tiny])
    assert np.all(expected[allocation <= tiny] <= tiny)


@given(usage=usages(slots=sizes), by_usage=st.booleans(), seed=seeds, write_heads=heads)
def test_write_heads_allocate_one_after_the_other(usage, by_usage, seed, write_heads):
    usage = usage.astype(np.float64)
    slots, numbers = len(usage), Numbers(seed, np.float64)
    allocation_gates, write_gates = numbers.gates(write_heads), numbers.gates(write_heads)
    contents = numbers.weighting(write_heads, slots)
    gates = torch.from_numpy(allocation_gates * write_gates)[None]
    expected = addressing.allocation_weightings(torch.from_numpy(usage.copy())[None], gates, by_usage)[0]
    if by_usage and len(set(usage)) < slots:
        return
    for head in range(write_heads):
        allocation, keys = np.full(slots, np.nan), np.zeros(padded(slots))
        integers = np.zeros(sorting.integers_needed(slots), np.int64)
        native(ALLOCATE, "nnnisf", np.float64)(usage, allocation, keys, integers, slots, by_usage)
        assert_close(allocation, expected[head], np.float64)
        native(row.allocate_next, "nxns", np.float64)(usage, float(gates[0, head]), allocation, slots)
        mixed = torch.lerp(torch.from_numpy(contents[head]), torch.from_numpy(allocation), allocation_gates[head])
        native(row.write_weighting, "nnxxs", np.float64)(
            contents[head], allocation, allocation_gates[head], write_gates[head], slots
        )
        assert_close(contents[head], write_gates[head] * mixed, np.float64)


@given(seed=seeds, slots=st.integers(1, 1100), number=st.sampled_from([1, 3, 1 << 20]), dtype=precisions)
def test_slots_are_ordered_stably_by_any_keys(seed, slots, number, dtype):
    keys = np.round(Numbers(seed, dtype).normal(slots) * number) / number
    keys, found = keys.astype(dtype), np.zeros(slots, np.int32 if dtype == np.float32 else np.int64)
    keys[keys == 0] = 0  # zero and minus zero are two keys
    integers = np.zeros(sorting.integers_needed(slots), found.dtype)
    native(ORDER, "niis", dtype)(keys, found, integers, slots)
    assert np.array_equal(found, np.argsort(-keys, kind="stable"))


def ORDER(keys, found, integers, slots):
    order = sorting.descending_order(keys, integers, slots)
    for n in range(slots):
        found[n] = order[n]


def test_even_what_is_no_number_finds_a_place():
    for slots in (40, 600):
        keys, found = np.full(slots, np.nan, np.float32), np.zeros(slots, np.int32)
        keys[::3] = 0.5
        native(ORDER, "niis", np.float32)(keys, found, np.zeros(sorting.integers_needed(slots), np.int32), slots)
        assert sorted(found) == list(range(slots))


@given(seed=seeds, slots=sizes, write_heads=heads, read_heads=heads, moved=st.booleans(), dtype=precisions)
def test_links_are_made_new_and_followed(seed, slots, write_heads, read_heads, moved, dtype):
    numbers, stride = Numbers(seed, dtype), padded(slots)
    before = numbers.gates(write_heads, slots, slots) / slots
    before = (before * (1 - np.eye(slots))).astype(dtype)
    writes, precedence = numbers.weighting(write_heads, slots), numbers.weighting(write_heads, slots)
    reads, content = numbers.weighting(read_heads, slots), numbers.weighting(read_heads, slots)
    modes = numbers.weighting(read_heads, 1 + 2 * write_heads)
    expected = addressing.update_links(*tensors(before, precedence, writes))
    read = addressing.read_weighting(expected, *tensors(reads, content, modes))[0]

    def spaced(array: np.ndarray) -> np.ndarray:
        return np.pad(array, ((0, 0), (0, stride - slots))).astype(dtype)

    after = np.full_like(before, np.nan) if moved else before.copy()
    backward, forward, partial = spaced(modes[:, -1:] * content), spaced(0 * content), numbers.scratch(256 * read_heads)
    sums = np.zeros(1, dtype)
    for head in range(write_heads):
        native(LINKS, "fnnnnnnnnnssssns", dtype)(
            moved, before[head], after[head], writes[head], precedence[head], spaced(reads), modes, backward, forward,
            partial, slots, stride, write_heads, read_heads, sums, head,
        )  # fmt: skip
        assert np.isfinite(sums[0])
        native(links.update_precedence, "nns", dtype)(precedence[head], writes[head], slots)
    assert_close(after, expected[0], dtype)
    assert np.all(after[:, range(slots), range(slots)] == 0)
    assert_close((backward + forward)[:, :slots], read, dtype)


def LINKS(moved, before, after, w, p, reads, modes, backward, forward, partial, slots, stride, K, R, sums, head):
    sums[0] = links.update_and_follow(
        moved, before, after, w, p, reads, modes, backward, forward, partial, slots, stride, K, R, head
    )


@given(seed=seeds, slots=sizes, words=st.integers(1, 40), write_heads=heads, dtype=precisions)
def test_words_are_erased_and_written(seed, slots, words, write_heads, dtype):
    numbers, stride = Numbers(seed, dtype), padded(slots)
    memory, weights = numbers.normal(slots, words), numbers.weighting(write_heads, slots)
    erase, write = numbers.gates(write_heads, words), numbers.normal(write_heads, words)
    m, w, e, v = (torch.from_numpy(array) for array in (memory.copy(), weights, erase, write))
    expected = m * torch.prod(1 - w[:, :, None] * e[:, None], 0) + w.T @ v
    spaced = np.pad(weights, ((0, 0), (0, stride - slots)))
    native(access.write_words, "nnnnssss", dtype)(memory, spaced, erase, write, slots, stride, words, write_heads)
    assert_close(memory, expected, dtype)


@pytest.mark.parametrize("kind", [controller.LSTM, controller.GRU, controller.RNN_TANH, controller.RNN_RELU])
@given(seed=seeds, size=sizes, clip=st.sampled_from([0.0, 0.3]), dtype=precisions)
def test_cells(kind, seed, size, clip, dtype):
    numbers = Numbers(seed, dtype)
    gates, cell, previous = numbers.normal(4, size), numbers.normal(size), numbers.normal(size)
    hidden, before = numbers.scratch(size), torch.from_numpy(cell.copy())
    a, b, c, d = (torch.from_numpy(gate) for gate in gates)
    if kind == controller.LSTM:
        state = torch.sigmoid(b) * before + torch.sigmoid(a) * torch.tanh(c)
        expected = torch.sigmoid(d) * torch.tanh(state)
        before = state.clamp(-clip, clip) if clip else state
    elif kind == controller.GRU:
        new = torch.tanh(c + torch.sigmoid(a) * d)
        expected = new + torch.sigmoid(b) * (torch.from_numpy(previous) - new)
    else:
        expected = torch.tanh(a) if kind == controller.RNN_TANH else torch.relu(a)
    native(controller.step_cell, "snnnnsx", dtype)(kind, gates, cell, previous, hidden, size, dtype(clip))
    assert_close(hidden, expected, dtype)
    assert_close(cell, before, dtype)
