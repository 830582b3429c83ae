"""Adding and argmax: one-hot numbers, an end marker, one answer."""

import torch

from dnc_serve.model.tasks.adding import Adding
from dnc_serve.model.tasks.argmax import Argmax

NUMBERS = torch.tensor([[3, 0], [1, 4], [3, 4], [2, 1]])  # [n, B]


def test_inputs_are_one_hot_and_end_with_the_marker() -> None:
    batch = Adding().episode(NUMBERS)
    assert batch.inputs.argmax(2)[:, 0].tolist() == [3, 1, 3, 2, 5]
    assert (batch.inputs.sum(2) == 1).all()
    assert batch.due[:, 0].tolist() == [0, 0, 0, 0, 1]


def test_the_sum_is_that_of_all_outputs() -> None:
    task, batch = Adding(), Adding().episode(NUMBERS)
    outputs = torch.zeros(5, 2, 6)
    outputs[0, :, 0], outputs[3, :, 4] = 4.0, 5.0
    assert task.answer(outputs).tolist() == [9.0, 9.0]
    assert task.loss(outputs, batch).item() == 0.0
    outputs[1, 1, 1] = 0.6
    assert task.wrong(outputs, batch)[-1].tolist() == [0, 1]
    torch.testing.assert_close(task.loss(outputs, batch), torch.tensor(0.18))
    assert task.units(batch) == 2


def test_argmax_asks_for_the_last_of_equal_numbers_at_the_marker() -> None:
    task, batch = Argmax(), Argmax().episode(NUMBERS)
    assert batch.targets[-1, :, 0].tolist() == [2.0, 2.0]
    outputs = torch.full((5, 2, 6), 7.0)
    outputs[-1] = 0.0
    outputs[-1, :, 2] = torch.tensor([2.4, 2.6])
    assert task.wrong(outputs, batch).sum(1).tolist() == [0, 0, 0, 0, 1]
    torch.testing.assert_close(task.loss(outputs, batch), torch.tensor((0.16 + 0.36) / 2))


def test_numbers_and_lengths_are_in_their_ranges() -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [Adding(size=4, min_length=2, max_length=5).draw(20, generator) for _ in range(50)]
    assert {len(batch.inputs) for batch in batches} == {3, 4, 5, 6}
    assert {int(number) for batch in batches for number in batch.inputs[:-1].argmax(2).flatten()} == {0, 1, 2}
