"""Associative recall: keys that can be told apart, questions that have one answer."""

import numpy as np
import pytest
import torch

from dnc_serve.model.tasks import recall
from dnc_serve.model.tasks.recall import Recall
from dnc_serve.model.tasks.task import Batch


def parts(batch: Batch, pairs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Told keys, told values, asked keys."""
    return batch.inputs[:pairs, :, :8], batch.inputs[:pairs, :, 8:16], batch.inputs[pairs:, :, :8]


@pytest.mark.parametrize("near", [False, True])
def test_keys_of_an_episode_are_all_different(near: bool) -> None:
    keys = Recall().distinct_keys(10, 50, torch.Generator().manual_seed(1), near=near)
    for row in range(50):
        assert len(keys[:, row].unique(dim=0)) == 10
    if near:
        assert ((keys[0::2] != keys[1::2]).sum(2) == 1).all()


def test_every_question_has_the_value_told_with_its_key() -> None:
    batch = Recall(min_pairs=7, max_pairs=7, near_share=0.0, dropped_share=0.0).draw(
        20, torch.Generator().manual_seed(2)
    )
    keys, values, asked = parts(batch, 7)
    match = (asked.unsqueeze(1) == keys.unsqueeze(0)).all(3)  # [Q, pairs, B]
    assert (match.sum(1) == 1).all()
    told = torch.einsum("qpb,pbv->qbv", match.float(), values)
    assert torch.equal(told, 2 * batch.targets[7:] - 1)
    assert batch.inputs[:, 0, 16:].tolist() == [[1, 0]] * 7 + [[0, 1]] * 6
    assert not batch.inputs[7:, :, 8:16].any()


def test_dropped_bits_leave_one_possible_key() -> None:
    generator = torch.Generator().manual_seed(3)
    batch = Recall(min_pairs=10, max_pairs=10, near_share=0.0, dropped_share=1.0).draw(50, generator)
    keys, values, asked = parts(batch, 10)
    known = asked != 0
    assert set((~known).sum(2).unique().tolist()) >= {1, 2}
    match = ((asked.unsqueeze(1) == keys.unsqueeze(0)) | ~known.unsqueeze(1)).all(3)
    assert (match.sum(1) == 1).all()
    told = torch.einsum("qpb,pbv->qbv", match.float(), values)
    assert torch.equal(told, 2 * batch.targets[10:] - 1)


def test_a_client_tells_and_asks_as_in_training() -> None:
    task, generator = recall.BUNDLED, torch.Generator().manual_seed(4)
    keys, values = task.distinct_keys(5, 1, generator), torch.randint(0, 2, (5, 1, 8), generator=generator).float()
    batch = task.episode(keys, values, torch.tensor([[3], [0]]))
    inputs = np.concatenate((recall.encode_pairs(keys[:, 0], values[:, 0]), recall.encode_questions(keys[[3, 0], 0])))
    assert inputs.dtype == np.float32
    assert np.array_equal(inputs, batch.inputs[:, 0].numpy())
    assert np.array_equal(recall.decode(2 * batch.targets[5:, 0] - 1), values[[3, 0], 0].numpy())


def test_keys_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match="values has 1 rows; expected 2"):
        recall.encode_pairs(np.zeros((2, 8)), np.zeros((1, 8)))
