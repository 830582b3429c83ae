"""Graph traversal: maps on which every journey is possible, and answers that a plain look-up confirms."""

import torch

from dnc_serve.model.tasks.graph import Graph
from dnc_serve.model.tasks.task import Batch
from dnc_serve.model.tasks.triples import DIGITS


def number(digits: torch.Tensor) -> int:
    """The number in two one-hot digits [20]."""
    tens, ones = digits.view(2, DIGITS).argmax(1).tolist()
    return tens * DIGITS + ones


Asked = tuple[int, list[int], list[int]]
"""A start, the lines taken, and the stations due."""


def read_row(batch: Batch, row: int) -> tuple[dict[tuple[int, int], int], list[Asked]]:
    """The map and the journeys, read from the vectors of one row."""
    ways: dict[tuple[int, int], int] = {}
    told = int(batch.inputs[:, row, -2].sum())
    for x in batch.inputs[:told, row]:
        way = number(x[:20]), int(x[20:23].argmax())
        assert way not in ways, "two ways out of a station by one line"
        ways[way] = number(x[23:43])
    journeys: list[Asked] = []
    for x, target in zip(batch.inputs[told:, row], batch.targets[told:, row], strict=True):
        assert not x[23:44].any() and x[44] == 1
        if x[:20].any():
            journeys.append((number(x[:20]), [], []))
        journeys[-1][1].append(int(x[20:23].argmax()))
        journeys[-1][2].append(number(target))
    return ways, journeys


def test_every_journey_leads_where_the_map_says() -> None:
    task, generator = Graph(journeys=3), torch.Generator().manual_seed(1)
    sizes, lengths = set(), set()
    for _ in range(30):
        batch = task.draw(16, generator)
        for row in range(16):
            ways, journeys = read_row(batch, row)
            assert len(journeys) == 3
            assert len(journeys[-1][1]) == task.hops
            for here, lines, due in journeys:
                lengths.add(len(lines))
                for line, station in zip(lines, due, strict=True):
                    here = ways[here, line]
                    assert here == station
            sizes.add(len(ways))
            assert len({station for way, to in ways.items() for station in (way[0], to)}) <= task.max_stations
    assert sizes == set(range(12, 21))
    assert lengths == {1, 2, 3, 4}


def test_names_and_journeys_are_spread() -> None:
    task, generator = Graph(), torch.Generator().manual_seed(2)
    starts, reached = set(), set()
    for _ in range(30):
        batch = task.draw(16, generator)
        for row in range(16):
            _, journeys = read_row(batch, row)
            for start, _, due in journeys:
                starts.add(start)
                reached.update(due)
    assert len(starts) > 90 and len(reached) == 100


def test_a_map_has_the_stations_that_its_triples_need() -> None:
    batch = Graph(min_stations=1, max_stations=1, min_triples=7, max_triples=7).draw(4, torch.Generator())
    for row in range(4):
        ways, _ = read_row(batch, row)
        assert len(ways) == 7


def test_loss_and_wrong_digits_count_answers_alone() -> None:
    task = Graph(journeys=1)
    batch = task.draw(4, torch.Generator().manual_seed(3))
    right = 30 * batch.targets
    assert task.loss(right, batch) < 1e-6
    assert task.wrong(right, batch).sum() == 0
    first_due = int(batch.due[:, 0].argmax())
    right[first_due, 0, 10:] = right[first_due, 0, 10:].roll(1)  # another last digit
    right[0] = 5.0
    assert task.wrong(right, batch).sum() == 1
    assert task.units(batch) == 4 * 4 * 2
