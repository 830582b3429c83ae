"""Priority sort: the vectors of the highest priorities, in the order that Python's own sorting gives them."""

from dataclasses import replace

import pytest
import torch

from dnc_serve.model.evaluate import FRESH, evaluate
from dnc_serve.model.start import new_model
from dnc_serve.model.tasks.priority_sort import PrioritySort
from dnc_serve.model.train import Training, wrong_share


def test_answers_are_the_vectors_of_the_highest_priorities_in_order() -> None:
    generator = torch.Generator().manual_seed(1)
    counts = set()
    for _ in range(20):
        batch = PrioritySort(max_vectors=10).draw(8, generator)
        told = int(batch.inputs[:, 0, -2].sum())
        asked = len(batch.inputs) - told
        counts.add((told, asked))
        assert not batch.inputs[told:, :, :-1].any()
        for row in range(8):
            pairs = [(float(x[8]), (x[:8] > 0).tolist()) for x in batch.inputs[:told, row]]
            best = [vector for _, vector in sorted(pairs, reverse=True)[:asked]]
            assert (batch.targets[told:, row] > 0.5).tolist() == best
        assert torch.equal(batch.due[:, 0], batch.inputs[:, 0, -1])
    assert {(10, 8), (5, 4), (1, 1)} <= counts


def test_sixteen_of_twenty_are_asked_for_as_in_the_paper() -> None:
    batch = PrioritySort(min_vectors=20, max_vectors=20).draw(2, torch.Generator().manual_seed(2))
    assert len(batch.inputs) == 36 and batch.due.sum() == 2 * 16
    priorities = batch.inputs[:20, :, 8]
    assert priorities.min() < -0.5 and priorities.max() > 0.5


@pytest.mark.parametrize("share", [0.0, 1.2])
def test_a_share_that_asks_for_nothing_or_too_much_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"answered is {share}; expected a share"):
        PrioritySort(answered=share)


@pytest.mark.long
def test_three_vectors_begin_to_be_sorted_after_a_minute() -> None:
    task = PrioritySort(bits=4, max_vectors=3)
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "nr_cells": 8, "cell_size": 12, "read_heads": 1}
    recipe = replace(PrioritySort.recipe, model=sizes, iterations=2000, batch_size=32, lr=3e-3)
    training = Training(task, new_model(task, recipe), recipe)
    # Who doesn't know the order, and says of each bit what most vectors have, is wrong in 0.208 of them.
    assert wrong_share(list(training.iterate())[-300:]) < 0.18
    (figure, *_) = evaluate(task, training.model, episodes=100, starts=(FRESH,))
    assert figure.wrong_units <= 0.02 * figure.units  # one vector is a copy
