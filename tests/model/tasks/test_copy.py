"""The copy task: its episodes, its costs, and the bits that a client sends and gets."""

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dnc_serve.model.tasks import copy
from dnc_serve.model.tasks.copy import Copy

VECTORS = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])  # two vectors of two bits, one row


def test_an_episode_tells_marks_and_asks() -> None:
    batch = Copy(bits=2).episode(VECTORS)
    assert batch.inputs[:, 0].tolist() == [[1, -1, 1, 0], [-1, -1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert batch.targets[3:, 0].tolist() == [[1, 0], [0, 0]]
    assert batch.due[:, 0].tolist() == [0, 0, 0, 1, 1]


def test_the_packages_style_feeds_bits_and_has_the_markers_channel_among_its_targets() -> None:
    batch = Copy(bits=2, seed_style=True).episode(VECTORS)
    assert batch.inputs[:, 0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert batch.targets[:, 0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_the_packages_cost_is_the_mean_over_every_timestep_and_channel() -> None:
    task = Copy(bits=2, seed_style=True)
    batch = task.episode(VECTORS)
    logits = torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(1))
    probability = torch.sigmoid(logits)
    by_hand = -(batch.targets * probability.log() + (1 - batch.targets) * (1 - probability).log()).mean()
    torch.testing.assert_close(task.loss(logits, batch), by_hand)


def test_our_cost_is_the_mean_over_the_answers_alone() -> None:
    task = Copy(bits=2)
    batch = task.episode(VECTORS)
    logits = torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(1))
    expected = binary_cross_entropy_with_logits(logits[3:], batch.targets[3:])
    torch.testing.assert_close(task.loss(logits, batch), expected)


def test_wrong_bits_are_counted_where_answers_are_due() -> None:
    task = Copy(bits=2)
    batch = task.episode(VECTORS)
    logits = 2 * batch.targets - 1
    assert task.wrong(logits, batch).sum() == 0
    logits[4, 0, 1] = 1.0
    logits[0] = 1.0
    assert task.wrong(logits, batch)[:, 0].tolist() == [0, 0, 0, 0, 1]
    assert task.units(batch) == 4


def test_draws_have_every_length_and_come_from_the_generator_alone() -> None:
    task = Copy(max_length=4, short_share=0.0)
    generator = torch.Generator().manual_seed(3)
    lengths = {(len(task.draw(2, generator).inputs) - 1) // 2 for _ in range(100)}
    assert lengths == {1, 2, 3, 4}
    first, again = (task.draw(2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.inputs, again.inputs)


def test_a_longer_task_is_the_same_task() -> None:
    assert Copy(bits=3).lengthened(5) == Copy(bits=3, max_length=25)


@pytest.mark.parametrize("lengths", [(0, 3), (4, 3)])
def test_a_wrong_range_is_refused(lengths: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"length is {lengths[0]} to {lengths[1]}"):
        Copy(min_length=lengths[0], max_length=lengths[1])


def test_a_client_tells_and_asks_as_in_training() -> None:
    bits = np.random.default_rng(1).integers(0, 2, (5, 8))
    batch = copy.BUNDLED.episode(torch.tensor(bits, dtype=torch.float32).unsqueeze(1))
    inputs = np.concatenate((copy.encode(bits), copy.recall_inputs(5)))
    assert np.array_equal(inputs, batch.inputs[:, 0].numpy())
    assert np.array_equal(copy.decode(2 * batch.targets[6:, 0] - 1), bits)


def test_what_is_not_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[n, 8\] of zeros and ones"):
        copy.encode([[0, 1]])
    with pytest.raises(ValueError, match="zeros and ones"):
        copy.encode([[2] * 8])
