"""Maps of one's own: names to numbers and back, as the graph model was trained."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dnc_serve.model.tasks.graph import BUNDLED
from dnc_serve.model.tasks.station_map import StationMap
from dnc_serve.model.tasks.triples import Journey

ROWS = [("Alder", "red", "Birch"), ("Birch", "blue", "Cedar"), ("Cedar", "red", "Alder"), ("Alder", "blue", "Cedar")]


def test_a_csv_file_with_or_without_a_header_is_read(tmp_path: Path) -> None:
    body = "\n".join(", ".join(row) for row in ROWS) + "\n\n"
    (tmp_path / "plain.csv").write_text(body)
    (tmp_path / "header.csv").write_text("From,Line,To\n" + body)
    expected = StationMap.from_rows(ROWS)
    assert StationMap.from_csv(tmp_path / "plain.csv") == expected
    assert StationMap.from_csv(tmp_path / "header.csv") == expected
    assert expected.stations == ["Alder", "Birch", "Cedar"]
    assert expected.lines == ["red", "blue"]


def test_a_map_is_told_and_asked_as_in_training() -> None:
    named = StationMap.from_rows(ROWS)
    numbers = [named.number(station) for station in ("Alder", "Birch", "Cedar")]
    a, b, c = numbers
    triples = torch.tensor([[a, 0, b], [b, 1, c], [c, 0, a], [a, 1, c]]).unsqueeze(1)
    journey = Journey(torch.tensor([a]), torch.tensor([[0], [1]]), torch.tensor([[b], [c]]))
    batch = BUNDLED.episode(triples, [journey])
    inputs = np.concatenate((named.encode(), named.encode_journey("Alder", ["red", "blue"])))
    assert np.array_equal(inputs, batch.inputs[:, 0].numpy())
    assert named.decode(batch.targets[4:, 0]) == ["Birch", "Cedar"] == named.walk("Alder", ["red", "blue"])


def test_a_walk_ends_where_the_line_does() -> None:
    assert StationMap.from_rows(ROWS).walk("Birch", ["blue", "blue", "red"]) == ["Cedar"]


def test_all_hundred_numbers_are_different() -> None:
    ring = StationMap.from_rows([(f"s{i}", "red", f"s{(i + 1) % 100}") for i in range(100)])
    assert len({ring.number(station) for station in ring.stations}) == 100


def test_a_grown_map_keeps_its_numbers() -> None:
    grown = StationMap.from_rows([*ROWS, ("Dogwood", "red", "Alder")])
    before = StationMap.from_rows(ROWS)
    assert [grown.number(name) for name in before.stations] == [before.number(name) for name in before.stations]


def test_a_number_without_a_station_is_shown() -> None:
    outputs = np.zeros((1, 20))
    outputs[0, [9, 19]] = 1
    assert StationMap.from_rows(ROWS).decode(outputs) == ["99"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the map is empty"),
        ([("a", "red")], "row 1 of the map: 'a, red'; expected from, line, to"),
        ([("a", "red", "b"), ("a", "red", "c")], "row 2 of the map: red leads from a to c, and to b before"),
        ([("a", line, "b") for line in "rgbw"], "row 4 of the map: 'w' is one line more; the model takes at most 3"),
        ([(f"s{i}", "red", f"s{i + 1}") for i in range(100)], "101 stations; the model takes at most 100"),
    ],
)
def test_a_map_that_cannot_be_told_is_refused(rows: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StationMap.from_rows(rows)


def test_a_wrong_file_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("from,line,to\n\na,red,b\na,red,c\n")
    with pytest.raises(ValueError, match=r"map\.csv:4: red leads from a to c, and to b before"):
        StationMap.from_csv(path)
    path.write_bytes(b"a,\xff,b\n")
    with pytest.raises(ValueError, match=r"map\.csv: not UTF-8 text"):
        StationMap.from_csv(path)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    named = StationMap.from_rows(ROWS)
    with pytest.raises(ValueError, match="station is 'Elm'; expected one of Alder, Birch, Cedar"):
        named.encode_journey("Elm", ["red"])
    with pytest.raises(ValueError, match="line is 'green'; expected one of red, blue"):
        named.encode_journey("Alder", ["green"])
    with pytest.raises(ValueError, match="the journey takes no line"):
        named.encode_journey("Alder", [])
