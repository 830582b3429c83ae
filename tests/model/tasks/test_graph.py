"""Graph traversal: maps on which every journey is possible, and answers that a plain look-up confirms."""

import torch

from dnc_serve.model.tasks.graph import DIGITS, Graph
from dnc_serve.model.tasks.task import Batch


def number(digits: torch.Tensor) -> int:
    """The number in two one-hot digits [20]."""
    tens, ones = digits.view(2, DIGITS).argmax(1).tolist()
    return tens * DIGITS + ones


def read_row(batch: Batch, row: int) -> tuple[dict[tuple[int, int], int], int, list[int], list[int]]:
    """The map, the start, the lines taken and the stations due, read from the vectors of one row."""
    ways: dict[tuple[int, int], int] = {}
    told = int(batch.inputs[:, row, -2].sum())
    for x in batch.inputs[:told, row]:
        way = number(x[:20]), int(x[20:23].argmax())
        assert way not in ways, "two ways out of a station by one line"
        ways[way] = number(x[23:43])
    questions = batch.inputs[told:, row]
    assert not questions[1:, :20].any() and not questions[:, 23:43].any()
    lines = questions[:, 20:23].argmax(1).tolist()
    return ways, number(questions[0, :20]), lines, [number(target) for target in batch.targets[told:, row]]


def test_every_journey_leads_where_the_map_says() -> None:
    task, generator = Graph(), torch.Generator().manual_seed(1)
    sizes = set()
    for _ in range(30):
        batch = task.draw(16, generator)
        for row in range(16):
            ways, here, lines, due = read_row(batch, row)
            assert len(lines) == task.hops
            for line, station in zip(lines, due, strict=True):
                here = ways[here, line]
                assert here == station
            sizes.add(len(ways))
            assert len({station for way, to in ways.items() for station in (way[0], to)}) <= task.max_stations
    assert sizes == set(range(12, 21))


def test_names_and_journeys_are_spread() -> None:
    task, generator = Graph(), torch.Generator().manual_seed(2)
    starts, reached = set(), set()
    for _ in range(30):
        batch = task.draw(16, generator)
        for row in range(16):
            _, start, _, due = read_row(batch, row)
            starts.add(start)
            reached.update(due)
    assert len(starts) > 90 and len(reached) == 100


def test_a_maps_smaller_than_its_triples_need_is_not_drawn() -> None:
    batch = Graph(min_stations=1, max_stations=1, min_triples=7, max_triples=7).draw(4, torch.Generator())
    for row in range(4):
        ways, *_ = read_row(batch, row)
        assert len(ways) == 7


def test_loss_and_wrong_digits_count_answers_alone() -> None:
    task = Graph()
    batch = task.draw(4, torch.Generator().manual_seed(3))
    right = 30 * batch.targets
    assert task.loss(right, batch) < 1e-6
    assert task.wrong(right, batch).sum() == 0
    first_due = int(batch.due[:, 0].argmax())
    right[first_due, 0] = right[first_due, 0].roll(1)  # the digits run through all places: both, or a carry, wrong
    right[0] = 5.0
    assert task.wrong(right, batch).sum() in (1, 2)
    assert task.units(batch) == 4 * 4 * 2
