"""Repeat copy against DeepMind's own numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dnc_serve.model.tasks.repeat_copy import RepeatCopy, masked_sigmoid_cross_entropy
from dnc_serve.model.tasks.task import Batch

SETTINGS = [("sum", "nats"), ("sum", "bits"), ("average", "nats"), ("average", "bits")]


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(Path(__file__).parents[2] / "golden" / "repeat_copy.npz")


@pytest.fixture(scope="module")
def batch(golden: Any) -> Batch:
    patterns = [torch.tensor(golden[f"draws/pattern_{row}"]).double() for row in range(4)]
    return RepeatCopy(norm_max=int(golden["config/norm_max"])).assemble(patterns, golden["draws/repeats"].tolist())


def test_inputs_targets_and_mask_are_deepminds(golden: Any, batch: Batch) -> None:
    assert np.array_equal(batch.inputs.numpy(), golden["observations"])
    assert np.array_equal(batch.targets.numpy(), golden["target"])
    assert np.array_equal(batch.due.numpy(), golden["mask"])


@pytest.mark.parametrize(("total", "unit"), SETTINGS)
@pytest.mark.parametrize("given", ["", "given/"])
def test_cost_and_gradient_are_deepminds(golden: Any, total: str, unit: str, given: str) -> None:
    logits = torch.tensor(golden[f"{given}logits"], requires_grad=True)
    targets, mask = torch.tensor(golden[f"{given}target"]), torch.tensor(golden[f"{given}mask"])
    cost = masked_sigmoid_cross_entropy(logits, targets, mask, time_average=total == "average", in_bits=unit == "bits")
    cost.backward()
    np.testing.assert_allclose(cost.item(), golden[f"{given}cost/{total}_{unit}"], rtol=0, atol=1e-10)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), golden[f"{given}grad/{total}_{unit}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("total", "unit"), SETTINGS)
def test_the_tasks_options_choose_the_cost(golden: Any, batch: Batch, total: str, unit: str) -> None:
    task = RepeatCopy(time_average=total == "average", in_bits=unit == "bits")
    cost = task.loss(torch.tensor(golden["logits"]), batch)
    np.testing.assert_allclose(cost.item(), golden[f"cost/{total}_{unit}"], rtol=0, atol=1e-10)


def test_draws_stay_in_their_ranges() -> None:
    task = RepeatCopy(min_length=2, max_length=3, min_repeats=1, max_repeats=4)
    batch = task.draw(64, torch.Generator().manual_seed(1))
    repeats = (batch.inputs[:, :, -1].sum(0) * task.norm_max).round().int()
    assert set(repeats.tolist()) == {1, 2, 3, 4}
    assert batch.inputs[0, :, task.bits].tolist() == [1.0] * 64
    # n vectors repeated r times and the end marker are due
    lengths = (batch.due.sum(0) - 1) / repeats
    assert set(lengths.tolist()) == {2.0, 3.0}
