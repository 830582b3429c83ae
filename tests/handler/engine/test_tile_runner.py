"""Rows of TorchScript: whichever company a row is in, it has the bits that it has alone."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine import tile_runner
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.model.artifact import Artifact
from tests.handler.harness import random_inputs, running_engine


def filled_rows(tiles: TileRunner, rows: int) -> StateRows:
    """States that a model may be in after some timesteps, each its own."""
    filled = StateRows(2 * rows, tiles.layout, tiles.device)
    tiles.step(filled, range(rows), range(rows), [random_inputs(1000 + row, 3) for row in range(rows)])
    return filled


def alone(tiles: TileRunner, state: Float32, inputs: Float32) -> tuple[Float32, Float32]:
    """Outputs and last state of one row, a timestep a call."""
    rows = StateRows(1, tiles.layout, tiles.device)
    rows.write(0, state)
    outputs = [tiles.step(rows, [0], [0], [inputs[t : t + 1]])[0][0] for t in range(len(inputs))]
    return np.concatenate(outputs), rows.read(0)


@pytest.mark.parametrize("count", [1, 3, 13, 64])
def test_rows_of_any_number_of_ticks_have_the_bits_of_each_alone(tiles: TileRunner, count: int) -> None:
    chance = np.random.default_rng(count)
    rows = filled_rows(tiles, count)
    before = [rows.read(row) for row in range(count)]
    inputs = [random_inputs(row, int(chance.integers(1, 12))) for row in range(count)]
    sources = chance.permutation(count).tolist()
    targets = (count + chance.permutation(count)).tolist()
    outputs, finite = tiles.step(rows, sources, targets, inputs)
    assert finite == [True] * count
    for source, target, given, got in zip(sources, targets, inputs, outputs, strict=True):
        expected, after = alone(tiles, before[source], given)
        assert got.tobytes() == expected.tobytes()
        assert rows.read(target).tobytes() == after.tobytes()
        assert rows.read(source).tobytes() == before[source].tobytes()


def test_ticks_that_are_cut_into_slices_have_the_bits_of_one(tiles: TileRunner) -> None:
    whole, sliced = filled_rows(tiles, 2), filled_rows(tiles, 2)
    inputs = [random_inputs(1, 9), random_inputs(2, 9)]
    expected, _ = tiles.step(whole, [0, 1], [2, 3], inputs)
    got: list[list[Float32]] = []
    for sources, ticks in (([0, 1], slice(4)), ([2, 3], slice(4, 5)), ([2, 3], slice(5, 9))):
        got.append(tiles.step(sliced, sources, [2, 3], [each[ticks] for each in inputs])[0])
    for row in range(2):
        assert np.concatenate([outputs[row] for outputs in got]).tobytes() == expected[row].tobytes()
    assert torch.equal(sliced.states, whole.states)


def test_a_state_that_is_not_finite_is_told_from_those_beside_it(tiles: TileRunner) -> None:
    rows = filled_rows(tiles, 3)
    expected, _ = alone(tiles, rows.read(2), random_inputs(2, 4))
    rows.states[1, tiles.layout.experience_offset] = torch.inf
    _, finite = tiles.step(rows, [0, 1, 2], [3, 4, 5], [random_inputs(row, 1 + row) for row in (0, 1, 3)])
    assert finite == [True, False, True]
    outputs, _ = tiles.step(rows, [1, 2], [3, 4], [random_inputs(1, 9), random_inputs(2, 4)])
    assert outputs[1].tobytes() == expected.tobytes()


class Rounding:
    """A module that rounds some tiles otherwise: no code that does so can be had for the asking."""

    def __init__(self, module: Any, otherwise: Callable[[Tensor, Tensor], None]) -> None:
        self._module = module
        self._otherwise = otherwise

    def to(self, device: torch.device) -> "Rounding":
        return self

    def __call__(self, inputs: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        outputs, after = self._module(inputs, states)
        self._otherwise(inputs, outputs)
        return outputs, after


def in_tiles_of_four(inputs: Tensor, outputs: Tensor) -> None:
    if inputs.size(1) == 4:
        outputs *= 1 + 2**-23


def in_the_last_row_of_eight(inputs: Tensor, outputs: Tensor) -> None:
    if inputs.size(1) == 8:
        outputs[:, -1] *= 1 + 2**-23


def where_many_ticks_are_stepped_by_twos(inputs: Tensor, outputs: Tensor) -> None:
    if inputs.size(1) == 2 and len(inputs) > 1:
        outputs *= 1 + 2**-23


@pytest.mark.parametrize(
    ("otherwise", "row_counts"),
    [
        (in_tiles_of_four, (1, 2, 8, 16)),
        (in_the_last_row_of_eight, (1, 2, 4, 16)),
        (where_many_ticks_are_stepped_by_twos, (1, 4, 8, 16)),
    ],
)
def test_tiles_in_which_a_row_depends_on_its_company_are_not_used(
    artifact: Artifact, otherwise: Callable[[Tensor, Tensor], None], row_counts: tuple[int, ...]
) -> None:
    rounding = replace(artifact, tick=Rounding(artifact.tick, otherwise))  # type: ignore[arg-type]
    assert TileRunner(rounding, "cpu", candidates=(1, 2, 4, 8, 16)).row_counts == row_counts


def test_large_states_are_stepped_in_smaller_tiles(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    row_bytes = 4 * artifact.layout.size
    monkeypatch.setitem(tile_runner.MAX_TILE_BYTES, "cpu", 13 * row_bytes)
    assert TileRunner(artifact, "cpu").max_rows == 12
    monkeypatch.setitem(tile_runner.MAX_TILE_BYTES, "cpu", row_bytes // 2)
    one_by_one = TileRunner(artifact, "cpu")
    assert one_by_one.row_counts == (1,)
    outputs, _ = one_by_one.step(StateRows(1, artifact.layout, one_by_one.device), [0], [0], [random_inputs(0, 3)])
    assert outputs[0].shape == (3, artifact.config.outputs)


def test_while_a_step_runs_other_threads_go_on(tiles: TileRunner) -> None:
    rows, inputs = StateRows(1, tiles.layout, tiles.device), random_inputs(0, 300)
    before, turns = sys.getswitchinterval(), 0
    sys.setswitchinterval(100.0)  # nobody is made to let go of the interpreter
    try:
        with ThreadPoolExecutor(1) as threads:
            stepped = threads.submit(tiles.step, rows, [0], [0], [inputs])
            while not stepped.done():
                turns += 1
                time.sleep(0)
    finally:
        sys.setswitchinterval(before)
    assert turns > 100
    assert len(stepped.result()[0][0]) == len(inputs)


async def test_what_computed_a_record_and_is_not_at_hand_is_replaced_and_said(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    other = TileRunner(artifact, "cpu", candidates=(1, 2))
    assert other.fingerprint != tiles.fingerprint
    settings = ServeConfig(state_dir=tmp_path)
    async with running_engine(other, artifact, settings) as harness:
        session = await harness.create("s")
        await harness.step(session, random_inputs(1, 6))
        assert session.fingerprint == other.fingerprint
    async with running_engine(tiles, artifact, settings) as harness:
        found = harness.engine.table.find("s")
        assert found is not None
        await harness.step(found, random_inputs(2, 6))
        assert found.fingerprint == tiles.fingerprint
        assert found.replayed_elsewhere
        assert harness.metrics.registry.get_sample_value("dnc_replayed_elsewhere_total") == 1
