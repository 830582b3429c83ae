"""The kernel of any configuration steps as the model does, and each row's bits are its own affair."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnc_serve.model import DNC, DNCConfig, StateLayout
from dnc_serve.model.hidden import as_state
from dnc_serve.model.kernel import RowKernel
from tests.model.kernel.native import kernel_of
from tests.model.test_deepmind import CASES, hidden, load

# Of outputs in float32, relative to the largest.
CLOSE = 1e-5

choices = {
    "rnn_type": st.sampled_from(["lstm", "gru", "rnn"]),
    "nonlinearity": st.sampled_from(["tanh", "relu"]),
    "num_layers": st.integers(1, 3),
    "num_hidden_layers": st.integers(1, 3),
    "bias": st.booleans(),
    "nr_cells": st.sampled_from([1, 5, 16, 21, 33]),
    "read_heads": st.integers(1, 3),
    "write_heads": st.integers(1, 3),
    "cell_size": st.sampled_from([1, 4, 16, 19]),
    "independent_linears": st.booleans(),
    "share_memory": st.booleans(),
    "clip": st.sampled_from([0.0, 0.4, 20.0]),
    "key_activation": st.sampled_from(["linear", "tanh"]),
    "cosine": st.sampled_from(["deepmind", "dnc_package"]),
    "allocation_order": st.sampled_from(["nonusage", "usage"]),
    "clip_scope": st.sampled_from(["all", "controller_output"]),
    "input_size": st.integers(1, 20),
    "hidden_size": st.sampled_from([1, 7, 16, 20]),
    "output_size": st.sampled_from([1, 5, 70]),
}
configs = st.fixed_dictionaries(choices).map(lambda options: DNCConfig(**options))


def model_of(config: DNCConfig, dtype: torch.dtype = torch.float32) -> DNC:
    torch.manual_seed(1)
    return DNC.from_config(config).to(dtype).eval()


def inputs_of(kernel: RowKernel, ticks: int, rows: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ticks, rows, kernel.input_size)).astype(kernel.dtype)


def zeros(kernel: RowKernel, rows: int) -> np.ndarray:
    return np.zeros((rows, kernel.state_size), kernel.dtype)


def some_states(kernel: RowKernel, rows: int) -> np.ndarray:
    """States as in the midst of a session. From zeros slots are tied but for rounding, and fall as it wills."""
    random, slots = np.random.default_rng(5), kernel.config.nr_cells
    states = random.random((rows, kernel.state_size)) / slots
    for field in StateLayout(kernel.config).fields:
        part = states[:, field.offset : field.offset + field.size]
        if field.name == "usage_vector":
            part *= slots
        elif field.name == "link_matrix":
            part.reshape(rows, -1, slots, slots)[:, :, range(slots), range(slots)] = 0
        elif field.name not in ("precedence", "read_weights", "write_weights"):
            part[:] = random.standard_normal(part.shape) / 2
    return states.astype(kernel.dtype)


def stepped(dnc: DNC, states: np.ndarray, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and packed states of the eager model, one timestep on."""
    layout = StateLayout(dnc.config)
    with torch.no_grad():
        outputs, state = dnc.step(torch.from_numpy(inputs), layout.unpack(torch.from_numpy(states)))
        return outputs.numpy(), layout.pack(state).numpy()


def check_numbers(config: DNCConfig) -> None:
    """In float64, all of them are the model's."""
    dnc = model_of(config, torch.float64)
    kernel = kernel_of(dnc)
    states = some_states(kernel, 5)
    for inputs in inputs_of(kernel, 4, 5):
        slab = np.concatenate([zeros(kernel, 5), states])
        outputs, finite = kernel.step(slab, range(5, 10), range(5), inputs[None])
        assert np.array_equal(slab[5:], states)
        expected, states = stepped(dnc, states, inputs)
        assert finite == [True] * 5
        np.testing.assert_allclose(outputs[0], expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(slab[:5], states, rtol=0, atol=1e-10)


def check_bits(config: DNCConfig) -> None:
    """In float32, a row's depend on nothing else; and numbers are close."""
    dnc = model_of(config)
    kernel = kernel_of(dnc)
    inputs, states = inputs_of(kernel, 6, 9), some_states(kernel, 9)
    after = states.copy()
    outputs, _ = kernel.step(after, range(9), range(9), inputs)
    for row in (0, 4, 8):  # of blocks of four, and left over
        alone, one = np.stack([states[row], states[row] * 0]), inputs[:, row : row + 1]
        apart = np.concatenate([kernel.step(alone, [0], [0], one[k : k + 1])[0] for k in range(2)])
        rest, _ = kernel.step(alone, [0], [1], one[2:])
        assert np.array_equal(np.concatenate([apart, rest])[:, 0], outputs[:, row])
        assert np.array_equal(alone[1], after[row])
    expected, _ = stepped(dnc, states, inputs[0])
    assert np.abs(outputs[0] - expected).max() <= CLOSE * max(1.0, np.abs(expected).max())


BLOCKS = {"rnn_type": "gru", "num_layers": 2, "share_memory": False, "bias": False, "write_heads": 2, "clip": 0,
          "hidden_size": 40, "nr_cells": 36, "cell_size": 20}  # fmt: skip  # more than one register's numbers
COMMON = [
    {},
    BLOCKS,
    {"rnn_type": "rnn", "nonlinearity": "relu", "clip": 0.3, "num_layers": 2, "write_heads": 3, "read_heads": 3,
     "independent_linears": True, "clip_scope": "controller_output", "key_activation": "tanh", "num_hidden_layers": 1,
     "cosine": "dnc_package", "allocation_order": "usage", "cell_size": 19},
]  # fmt: skip


def config_of(options: dict[str, Any]) -> DNCConfig:
    return DNCConfig(**{"input_size": 3, "hidden_size": 7, "output_size": 5} | options)


@pytest.mark.parametrize("options", COMMON)
def test_a_configuration_steps_as_the_model_does(options):
    config = config_of(options)
    check_numbers(config)
    check_bits(config)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs)
def test_so_does_any_other(config):
    check_numbers(config)
    check_bits(config)


def small() -> tuple[DNC, RowKernel]:
    dnc = model_of(config_of({}))
    return dnc, kernel_of(dnc)


@given(seed=st.integers(0, 1000), ticks=st.integers(1, 9), rows=st.integers(1, 40), threads=st.integers(1, 3))
def test_neither_place_nor_division_nor_threads_change_a_bit(seed, ticks, rows, threads):
    dnc, kernel = small()
    inputs, states = inputs_of(kernel, ticks, rows, seed), zeros(kernel, rows)
    outputs, _ = kernel.step(states, range(rows), range(rows), inputs)
    shared = kernel_of(dnc, threads)
    shared._work_of_a_row = 1 << 22  # so small a model would not be worth a thread
    places = np.random.default_rng(seed).permutation(2 * rows)
    others, cut = zeros(kernel, 2 * rows), ticks // 2
    sources, targets = places[:rows].tolist(), places[rows:].tolist()
    pieces = [shared.step(others, sources, targets, inputs[:cut])[0]] if cut else []
    pieces.append(shared.step(others, targets if cut else sources, sources, inputs[cut:])[0])
    shared.close()
    assert np.array_equal(np.concatenate(pieces), outputs)
    assert np.array_equal(others[sources], states)


def test_registers_of_another_width_change_no_bit():
    dnc = model_of(config_of(BLOCKS))
    narrow, wide = kernel_of(dnc, most_bits=256), kernel_of(dnc)
    inputs, states = inputs_of(wide, 12, 7), zeros(wide, 14)
    of_wide, _ = wide.step(states, range(7), range(7), inputs)
    of_narrow, _ = narrow.step(states, range(7, 14), range(7, 14), inputs)
    assert np.array_equal(of_wide, of_narrow)
    assert np.array_equal(states[:7], states[7:])


def test_nor_does_a_thread_that_flushes_small_numbers():
    _, kernel = small()
    inputs = inputs_of(kernel, 40, 3) * 0
    results: list[Any] = []

    def step(flush: bool) -> None:
        torch.set_flush_denormal(flush)
        states = zeros(kernel, 3) + np.float32(1e-39)
        results.append((kernel.step(states, range(3), range(3), inputs)[0], states))
        tiny = torch.tensor(1e-39)
        results.append(bool(tiny * torch.tensor(0.5) == 0))

    for flush in (False, True):
        thread = threading.Thread(target=step, args=(flush,))
        thread.start()
        thread.join()
    (plain, states), unflushed, (flushed, others), still_flushed = results
    assert np.array_equal(plain, flushed)
    assert np.array_equal(states, others)
    assert not unflushed and still_flushed, "the kernel left the thread in another mode"


def test_a_row_that_is_not_finite_is_told_and_touches_no_other():
    _, kernel = small()
    layout = StateLayout(kernel.config)
    inputs, states = inputs_of(kernel, 2, 9), zeros(kernel, 9)
    expected, finite = kernel.step(states.copy(), range(9), range(9), inputs)
    assert finite == [True] * 9
    for field in layout.fields:
        for value in (np.nan, np.inf):
            spoiled = states.copy()
            spoiled[4, field.offset + field.size - 1] = value
            after = spoiled.copy()
            outputs, finite = kernel.step(after, range(9), range(9), inputs[:1])
            alright = [bool(np.isfinite(row).all()) for row in after]
            assert finite == alright, f"{field.name} was {value}"
            others = [row for row in range(9) if row != 4]
            assert np.array_equal(outputs[:, others], expected[:1, others])
    inputs[1, 2] = np.nan
    assert kernel.step(states, range(9), range(9), inputs)[1] == [row != 2 for row in range(9)]


@pytest.mark.parametrize(
    ("sources", "targets", "shape", "message"),
    [
        ([0, 1], [2], (1, 2, 3), "2 sources and 1 targets"),
        ([], [], (1, 0, 3), "0 sources"),
        ([0, 4], [0, 1], (1, 2, 3), "row 4 of the states is asked for; they have 4"),
        ([0, 1], [0, -1], (1, 2, 3), "row -1"),
        ([0, 1], [2, 3], (1, 2, 4), r"inputs are \[1, 2, 4\]; expected \[T, 2, 3\]"),
        ([0, 1], [2, 3], (0, 2, 3), "T at least 1"),
    ],
)
def test_what_does_not_fit_is_named(sources, targets, shape, message):
    _, kernel = small()
    with pytest.raises(ValueError, match=message):
        kernel.step(zeros(kernel, 4), sources, targets, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="states are float64"):
        kernel.step(zeros(kernel, 4).astype(np.float64), [0], [1], np.zeros((1, 1, 3), np.float32))


# How far float32 goes from DeepMind's numbers, relative to the largest of a tensor.
FLOAT32 = 2e-5
SHORT = ("dnc_n64", "dnc_small_clip")


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    # Those that are long differ from these in size alone.
    [pytest.param(name, torch.float64, 1e-10, marks=[] if name in SHORT else pytest.mark.long) for name in CASES]
    # The others begin with zeros, where rounding decides between slots that are as good as tied.
    + [(name, torch.float32, FLOAT32) for name in ("dnc_n64",)],
)
def test_deepminds_numbers(golden, golden_memory_state, name, dtype, bound):
    case = golden(name)
    dnc = load(case)
    kernel, layout, rows = kernel_of(dnc.to(dtype)), StateLayout(dnc.config), range(case["inputs"].size(1))
    dnc.double()
    state = as_state(dnc, hidden(case, golden_memory_state(case, "initial")), len(rows))
    states = layout.pack(state).to(dtype).numpy()
    for step, inputs in enumerate(case["inputs"]):
        outputs, _ = kernel.step(states, rows, rows, inputs[None].to(dtype).numpy())
        assert_within(bound, outputs[0], case["outputs"][step])
        after = layout.unpack(torch.from_numpy(states))
        assert_within(bound, after.controller_hidden[0][0][0], case["states/hidden"][step])
        assert_within(bound, after.controller_hidden[0][1][0], case["states/cell"][step])
        assert_within(bound, after.read_vectors, case["states/access_output"][step].flatten(1))
        for one, expected in zip(after.memory[0], golden_memory_state(case, "states", step), strict=True):
            assert_within(bound, one, expected)


def assert_within(bound: float, found: Any, expected: torch.Tensor) -> None:
    apart = np.abs(np.asarray(found) - expected.numpy()).max()
    assert apart <= bound * max(1.0, float(expected.abs().max()))
