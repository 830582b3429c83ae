"""Sequences are read from .npz and .csv files, and what is wrong with one is told with its place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc_serve.model.tasks.sequence_files import read_sequences

X = np.arange(14, dtype=np.float32).reshape(7, 2)
Y = np.arange(7, dtype=np.float32)[:, None]


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def folder_of(folder: Path, **files: str) -> Path:
    (folder / "data").mkdir()
    for name, text in files.items():
        (folder / "data" / f"{name}.csv").write_text(text)
    return folder / "data"


def test_ragged_sequences_stand_one_behind_the_other(tmp_path: Path) -> None:
    sequences = read_sequences(npz(tmp_path, x=X, y=Y[:, 0], lengths=[3, 4], due=[1, 0, 1, 1, 1, 1, 1]))
    assert sequences.inputs.tolist() == X.tolist()
    assert sequences.targets.tolist() == (Y * [[1], [0], [1], [1], [1], [1], [1]]).tolist()
    assert sequences.due.tolist() == [True, False, True, True, True, True, True]
    assert sequences.lengths.tolist() == [3, 4]
    assert (sequences.input_names, sequences.output_names) == (["x[0]", "x[1]"], ["y[0]"])


def test_sequences_of_one_length_are_three_dimensional_and_padding_is_cut_off(tmp_path: Path) -> None:
    x, y = np.zeros((2, 4, 3)), np.ones((2, 4, 1))
    x[0, 2:] = np.nan  # behind its end
    assert read_sequences(npz(tmp_path, x=np.ones((2, 4, 3)), y=y)).lengths.tolist() == [4, 4]
    sequences = read_sequences(npz(tmp_path, x=x, y=y, lengths=[2, 4]))
    assert sequences.lengths.tolist() == [2, 4]
    assert sequences.inputs.shape == (6, 3)


def test_without_lengths_there_is_one_sequence(tmp_path: Path) -> None:
    assert read_sequences(npz(tmp_path, x=X, y=Y)).lengths.tolist() == [7]


def test_where_no_answer_is_due_there_need_be_none(tmp_path: Path) -> None:
    y = np.where(np.arange(7) < 6, np.nan, 1.0)
    sequences = read_sequences(npz(tmp_path, x=X, y=y, due=np.arange(7) == 6))
    assert sequences.targets[:, 0].tolist() == [0.0] * 6 + [1.0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"has x; expected x and y"),
        ({"x": X, "y": Y, "z": Y}, r"has x, y, z; expected x and y, and perhaps lengths and due"),
        ({"x": X[:, 0], "y": Y}, r"x has shape \[7\]; expected \[rows, I\], or \[sequences, T, I\]"),
        ({"x": X, "y": Y[1:]}, r"y has shape \[6, 1\]; expected \[7, O\], as x has \[7, 2\]"),
        ({"x": X, "y": Y, "due": [1]}, r"due has shape \[1\]; expected \[7\]"),
        ({"x": X, "y": Y, "lengths": [3, 5]}, r"lengths sum up to 8; expected 7, the rows of x"),
        ({"x": X, "y": Y, "lengths": [0, 7]}, r"lengths are 0 to 7; expected 1 to 7"),
        ({"x": X, "y": Y, "lengths": [3.5, 3.5]}, r"lengths is float64 \[2\]; expected whole numbers"),
        ({"x": np.array([["a"]]), "y": [1]}, r"x is of <U1; expected numbers"),
        ({"x": X[:0], "y": Y[:0]}, r"x has shape \[0, 2\] and y \[0, 1\]; expected at least one timestep"),
        ({"x": np.where(X == 5, np.nan, X), "y": Y}, r"x\[2, 1\] is nan; expected a number that a float32 holds"),
        ({"x": X, "y": np.where(Y == 3, 1e300, Y.astype(float))}, r"y\[3, 0\] is 1e\+300; expected"),
        ({"x": np.full((2, 3, 1), np.inf), "y": np.ones((2, 3)), "lengths": [1, 2]}, r"x\[0, 0, 0\] is inf"),
    ],
)
def test_what_is_wrong_with_an_npz_is_named(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"data.npz:? {message}"):
        read_sequences(npz(tmp_path, **arrays))


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros((2, 1)), np.zeros((3, 1))]
    with pytest.raises(ValueError, match="one behind the other"):
        read_sequences(npz(tmp_path, x=ragged, y=ragged))
    (tmp_path / "data.npz").write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match=r"data.npz can't be read"):
        read_sequences(tmp_path / "data.npz")
    with pytest.raises(ValueError, match="expected no names of columns"):
        read_sequences(tmp_path / "data.npz", ["a"])


def test_a_folder_has_a_sequence_in_each_csv_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, b="time,load,heat,x_a\n1,2,3.5,0\n2,4,,0\n", a="heat,load,time\n7,8,9\n")
    (folder / "notes.txt").write_text("not data")
    sequences = read_sequences(folder, ["time", "load"], ["heat"])
    assert sequences.inputs.tolist() == [[9, 8], [1, 2], [2, 4]]
    assert sequences.targets.tolist() == [[7], [3.5], [0]]
    assert sequences.due.tolist() == [True, True, False]  # an empty cell: no answer is due
    assert sequences.lengths.tolist() == [1, 2]
    assert sequences.sha256 != read_sequences(folder / "a.csv", ["time", "load"], ["heat"]).sha256


def test_columns_are_chosen_by_how_their_names_begin_and_numbers_by_how_they_are_written(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a="x_a,note,y_class,x_b\n1,hello,0,2\n3,,1,4\n")
    sequences = read_sequences(folder)
    assert (sequences.input_names, sequences.output_names) == (["x_a", "x_b"], ["y_class"])
    assert sequences.targets.dtype == np.int64
    assert read_sequences(folder_of(tmp_path / "data", a="x_a,y_a\n1,0.0\n")).targets.dtype == np.float64


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("a,b\n1,2\n", ("a", "c"), r"a.csv has no column c; its columns are a, b"),
        ("a,b\n1,2\n", ("a", "a"), r"a is an input and an output"),
        ("a,b\n1,2\n", ("", ""), r"a.csv has no column that begins with x_; its columns are a, b; expected .*--inputs"),
        ("a,a\n1,2\n", ("a", "a"), r"a.csv has several columns a"),
        ("a,b\n1,2\n3\n", ("a", "b"), r"a.csv:3: has 1 values; expected 2"),
        ("a,b\n1,2\n\n3,nan\n", ("a", "b"), r"a.csv:4: b is 'nan'; expected a number that a float32 holds"),
        ("a,b\n-1e39,2\n", ("a", "b"), r"a.csv:2: a is '-1e39'; expected a number that a float32 holds"),
        ("a,b\n,2\n", ("a", "b"), r"a.csv:2: a is ''; expected a number"),
        ("a,b\n", ("a", "b"), r"a.csv has no row below its header"),
        ("", ("a", "b"), r"a.csv has no column a, b; its columns are none"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named(text: str, columns: tuple[str, str], message: str, tmp_path: Path) -> None:
    inputs, outputs = ([name] if name else [] for name in columns)
    with pytest.raises(ValueError, match=message):
        read_sequences(folder_of(tmp_path, a=text), inputs, outputs)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.csv file"):
        read_sequences(folder_of(tmp_path))
