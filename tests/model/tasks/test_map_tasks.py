"""Traversal and shortest path: what is due is what a plain search finds on the map that was told."""

from collections import deque
from pathlib import Path

import pytest
import torch

from dnc_serve.model.tasks.map_task import MapTask
from dnc_serve.model.tasks.planar_maps import planar_maps
from dnc_serve.model.tasks.shortest_path import ShortestPath
from dnc_serve.model.tasks.task import Batch
from dnc_serve.model.tasks.traversal import Traversal
from dnc_serve.model.tasks.triples import DIGITS
from dnc_serve.model.tasks.underground import Underground
from tests.model.tasks.published import write_underground


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_underground(tmp_path)
    return tmp_path


def number(digits: torch.Tensor) -> int | None:
    """The number in two one-hot digits [20]; None for none."""
    if not digits.any():
        return None
    tens, ones = digits.view(2, DIGITS).argmax(1).tolist()
    return tens * DIGITS + ones


def read_map(task: MapTask, batch: Batch, row: int) -> tuple[dict[tuple[int, int], int], torch.Tensor, torch.Tensor]:
    """What one row was told, and the inputs and targets that follow."""
    end_of_line = 2 * DIGITS + task.lines
    first = int(batch.inputs[:, row, -1].argmax())
    ways: dict[tuple[int, int], int] = {}
    for x in batch.inputs[:first, row]:
        if not x.any():
            continue  # silent: another row has more triples
        assert x[-2] == 1 and x[2 * DIGITS : end_of_line].sum() == 1
        source, target = number(x[: 2 * DIGITS]), number(x[end_of_line:-2])
        assert source is not None and target is not None
        way = source, int(x[2 * DIGITS : end_of_line].argmax())
        assert way not in ways, "two ways out of a station by one line"
        ways[way] = target
    return ways, batch.inputs[first:, row], batch.targets[first:, row]


def walk_length(ways: dict[tuple[int, int], int], start: int, end: int) -> tuple[int, int]:
    """The fewest hops from start to end by breadth-first search, and by how many rows of stations."""
    beside: dict[int, set[int]] = {}
    for (source, _), target in ways.items():
        beside.setdefault(source, set()).add(target)
    hops, counts = {start: 0}, {start: 1}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for there in beside[here]:
            if there not in hops:
                hops[there], counts[there] = hops[here] + 1, 0
                queue.append(there)
            if hops[there] == hops[here] + 1:
                counts[there] += counts[here]
    return hops[end], counts[end]


def test_a_planar_map_joins_each_station_to_its_nearest_in_both_directions() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = planar_maps(9, 2, 40, 20, generator)
    joined = maps.joined
    assert torch.equal(joined, joined.mT) and not joined.diagonal(dim1=1, dim2=2).any()
    assert joined.sum(2).min() >= 2
    told = (maps.triples[:, :, 0] >= 0).sum(0)
    assert torch.equal(told, joined.sum((1, 2))) and len(maps.triples) == told.max()
    used = {len(planar_maps(9, 2, 40, 1, generator).triples[:, 0, 1].unique()) for _ in range(30)}
    assert min(used) <= 6 and max(used) > 12  # lines that come again, and lines that don't
    with pytest.raises(ValueError, match=r"lines is 2; \d+ leave one station"):
        planar_maps(9, 2, 2, 20, torch.Generator().manual_seed(1))


def traversal_is_right(task: Traversal, batch: Batch, row: int) -> None:
    ways, inputs, targets = read_map(task, batch, row)
    end_of_line, journeys = 2 * DIGITS + task.lines, 0
    here = -1
    for x, target in zip(inputs, targets, strict=True):
        assert x[-1] == 1 and not x[end_of_line:-1].any()
        start = number(x[: 2 * DIGITS])
        if start is not None:
            here, journeys = start, journeys + 1
        here = ways[here, int(x[2 * DIGITS : end_of_line].argmax())]
        assert here == number(target)
    assert journeys == task.journeys


def path_is_right(task: ShortestPath, batch: Batch, row: int) -> int:
    """Checks a row with one question; how many hops its way has."""
    ways, inputs, targets = read_map(task, batch, row)
    question, planned, answers = inputs[0], inputs[1 : 1 + task.planning], inputs[1 + task.planning :]
    assert not planned.any() and not answers[:, :-1].any() and answers[:, -1].all()
    start, end = number(question[: 2 * DIGITS]), number(question[2 * DIGITS + task.lines : -2])
    assert start is not None and end is not None
    due = batch.due[len(batch.due) - len(answers) :, row]
    path = [number(target) for target in targets[1 + task.planning :][due > 0]]
    assert path[-1] == end
    here = start
    for there in path:
        assert there in {target for (source, _), target in ways.items() if source == here}
        here = there
    assert walk_length(ways, start, end) == (len(path), 1)
    return len(path)


def test_every_hop_of_a_traversal_leads_where_the_map_says() -> None:
    task, generator = Traversal(), torch.Generator().manual_seed(2)
    for _ in range(20):
        batch = task.draw(8, generator)
        for row in range(8):
            traversal_is_right(task, batch, row)


def test_a_shortest_path_is_the_one_that_a_search_finds() -> None:
    task, generator = ShortestPath(questions=1), torch.Generator().manual_seed(3)
    lengths = []
    for _ in range(30):
        batch = task.draw(8, generator)
        lengths += [path_is_right(task, batch, row) for row in range(8)]
    assert set(lengths) == {1, 2, 3, 4}
    assert len(task.draw(2, generator).inputs) < len(ShortestPath(questions=3).draw(2, generator).inputs)


def test_an_underground_is_read_with_its_directions(folder: Path) -> None:
    underground = Underground.read(folder, zones_below=2.5)
    # Cherry has one line only: blue leads past it.
    assert set(underground.stations) == {"Ash", "Beech", "Elder", "Fir"}
    assert set(underground.triples) >= {
        ("Ash", "Red Line east", "Elder"),
        ("Elder", "Red Line west", "Ash"),
        ("Ash", "Blue Line east", "Beech"),
        ("Beech", "Red Line east", "Fir"),
    }
    assert len({(source, line) for source, line, _ in underground.triples}) == len(underground.triples)
    assert "Fir" not in Underground.read(folder).stations  # zone 2
    assert underground.numbers().shape == (len(underground.triples), 3)


def test_a_damaged_table_is_refused_by_its_name(folder: Path) -> None:
    (folder / "london.lines.csv").write_text('"line","colour"\n1,red\n')
    with pytest.raises(ValueError, match=r"london\.lines\.csv has no column name"):
        Underground.read(folder)
    (folder / "london.lines.csv").write_text('"line","name"\n1,Red\n')
    with pytest.raises(ValueError, match="is in one table and not as another has it"):
        Underground.read(folder)


@pytest.mark.parametrize("kind", [Traversal, ShortestPath])
def test_the_real_map_is_an_exam_under_names_that_change(kind: type[MapTask], folder: Path) -> None:
    task = kind().moved(folder)
    assert "the underground" not in kind().exams()
    real = task.exams()["the underground"]
    assert isinstance(real, kind)
    batch = real.draw(6, torch.Generator().manual_seed(4))
    stations = set()
    for row in range(6):
        if isinstance(real, Traversal):
            traversal_is_right(real, batch, row)
        ways, _, _ = read_map(real, batch, row)
        stations |= set(ways.values())
        assert len(ways) == len(Underground.read(str(folder)).triples)
    assert len(stations) > 4  # two digits drawn anew for each row
    with pytest.raises(ValueError, match="real is True; expected data too"):
        kind(real=True)
