"""Sequences x [T, I] with their answers y [T, O], from an .npz file, a .csv file, or a folder of .csv files."""

import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NPZ_ARRAYS = ("x", "y", "lengths", "due")
LARGEST = float(np.finfo(np.float32).max)
WHOLE = re.compile(r"\s*[+-]?\d+\s*")


class Sequences(NamedTuple):
    """All sequences, one behind the other."""

    inputs: Array  # [rows, I]
    targets: Array  # [rows, O]; as they were written: whole numbers as integers
    due: Array  # [rows]; whether an answer is expected
    lengths: Array  # [sequences]
    input_names: list[str]
    output_names: list[str]
    sha256: str


def read_sequences(source: Path, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> Sequences:
    """Reads a file or a folder. `inputs` and `outputs` name columns of CSV; else their headers begin with x_ and y_.

    Raises FileNotFoundError, or ValueError that names the file, the place and what was expected there.
    """
    if source.suffix.lower() == ".npz" and not source.is_dir():
        if inputs or outputs:
            raise ValueError(f"{source} has its inputs in x and its outputs in y; expected no names of columns")
        return _read_npz(source)
    files = sorted(source.glob("*.csv")) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source} holds no .csv file; expected one for each sequence")
    return _read_csv(files, inputs, outputs)


def _read_npz(path: Path) -> Sequences:
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as exc:
        raise ValueError(
            f"{path} can't be read ({exc}); expected what numpy.savez writes of arrays of numbers: of sequences of "
            "different lengths one behind the other, x [rows, I] and y [rows, O], with their lengths"
        ) from exc
    unknown = sorted(set(arrays) - set(NPZ_ARRAYS))
    if unknown or not {"x", "y"} <= set(arrays):
        has = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path} has {has}; expected x and y, and perhaps lengths and due")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{path}: {name} is of {array.dtype}; expected numbers")
    x, y = arrays["x"], arrays["y"]
    if x.ndim not in (2, 3):
        raise ValueError(f"{path}: x has shape {list(x.shape)}; expected [rows, I], or [sequences, T, I]")
    leading = x.ndim - 1
    y = y[..., None] if y.ndim == leading else y
    due = arrays.get("due", np.ones(x.shape[:leading], bool))
    for name, array in (("y", y), ("due", due)):
        if array.shape[:leading] != x.shape[:leading] or array.ndim != leading + (name == "y"):
            fits = ", ".join(str(size) for size in x.shape[:leading])
            raise ValueError(
                f"{path}: {name} has shape {list(arrays[name].shape)}; expected [{fits}{', O' * (name == 'y')}], as x "
                f"has {list(x.shape)}"
            )
    if not x.size or not y.size:
        raise ValueError(f"{path}: x has shape {list(x.shape)} and y {list(y.shape)}; expected at least one timestep")
    lengths = _lengths(path, x, arrays.get("lengths"))
    if leading == 2:  # what is behind a sequence's length is padding
        kept = np.arange(x.shape[1]) < lengths[:, None]
        places = np.argwhere(kept)
        x, y, due = x[kept], y[kept], due[kept]
    else:
        places = np.arange(len(x))[:, None]
    for name, array in (("x", x), ("y", y)):
        wrong = np.argwhere(~_is_finite(array) & ((due != 0)[:, None] | (name == "x")))
        if len(wrong):
            row, column = wrong[0]
            at = ", ".join(str(index) for index in [*places[row], column])
            raise ValueError(f"{path}: {name}[{at}] is {array[row, column]}; expected a number that a float32 holds")
    y = np.where((due != 0)[:, None], y, np.zeros(1, y.dtype))
    input_names, output_names = (
        [f"{name}[{i}]" for i in range(array.shape[1])] for name, array in (("x", x), ("y", y))
    )
    return Sequences(x, y, due != 0, lengths, input_names, output_names, hashlib.sha256(content).hexdigest())


def _lengths(path: Path, x: Array, given: Array | None) -> Array:
    if given is None:
        return np.array([len(x)]) if x.ndim == 2 else np.full(len(x), x.shape[1])
    sequences = "any" if x.ndim == 2 else str(len(x))
    if given.ndim != 1 or not given.size or given.dtype.kind not in "iu" or (x.ndim == 3 and len(given) != len(x)):
        what = f"{given.dtype} {list(given.shape)}"
        raise ValueError(f"{path}: lengths is {what}; expected whole numbers, one for each sequence ({sequences})")
    lengths = given.astype(np.int64)
    most = len(x) if x.ndim == 2 else x.shape[1]
    if lengths.min() < 1 or lengths.max() > most:
        raise ValueError(f"{path}: lengths are {lengths.min()} to {lengths.max()}; expected 1 to {most}")
    if x.ndim == 2 and lengths.sum() != len(x):
        raise ValueError(f"{path}: lengths sum up to {lengths.sum()}; expected {len(x)}, the rows of x")
    return lengths


def _is_finite(array: Array) -> Array:
    with np.errstate(over="ignore"):
        finite: Array = np.isfinite(array.astype(np.float32))
    return finite


def _read_csv(files: list[Path], inputs: Sequence[str], outputs: Sequence[str]) -> Sequences:
    digest = hashlib.sha256()
    x: list[list[float]] = []
    y: list[list[float]] = []
    due: list[bool] = []
    lengths: list[int] = []
    whole = True
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
        try:
            rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
            header = [name.strip() for name in next(rows, [])]
            inputs, outputs = _columns(path, header, inputs, outputs)
            at_input, at_output = ([header.index(name) for name in names] for names in (inputs, outputs))
            before = len(x)
            for row in filter(None, rows):
                if len(row) != len(header):
                    raise ValueError(f"{path}:{rows.line_num}: has {len(row)} values; expected {len(header)}")
                place = f"{path}:{rows.line_num}"
                answers = [row[index] for index in at_output]
                x.append([_number(place, header[index], row[index]) for index in at_input])
                due.append(any(answer.strip() for answer in answers))
                if due[-1]:
                    whole = whole and all(WHOLE.fullmatch(answer) for answer in answers)
                    y.append([_number(place, name, answer) for name, answer in zip(outputs, answers, strict=True)])
                else:
                    y.append([0.0] * len(outputs))
        except (UnicodeDecodeError, csv.Error) as exc:
            raise ValueError(f"{path} isn't CSV in UTF-8: {exc}") from exc
        if len(x) == before:
            raise ValueError(f"{path} has no row below its header; expected a timestep in each")
        lengths.append(len(x) - before)
    targets = np.array(y)
    return Sequences(
        np.array(x),
        targets.astype(np.int64) if whole else targets,
        np.array(due),
        np.array(lengths),
        list(inputs),
        list(outputs),
        digest.hexdigest(),
    )


def _columns(
    path: Path, header: list[str], inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """The columns asked for, or those whose names begin with x_ and y_."""
    has = ", ".join(header) or "none"
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"{path} has several columns {', '.join(twice)}; expected a name of its own for each")
    inputs = inputs or [name for name in header if name.startswith("x_")]
    outputs = outputs or [name for name in header if name.startswith("y_")]
    if missing := [name for name in (*inputs, *outputs) if name not in header]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; its columns are {has}")
    if both := sorted(set(inputs) & set(outputs)):
        raise ValueError(f"{', '.join(both)} is an input and an output; expected one of both")
    for flag, prefix, names in (("--inputs", "x_", inputs), ("--outputs", "y_", outputs)):
        if not names:
            raise ValueError(
                f"{path} has no column that begins with {prefix}; its columns are {has}; expected some, or {flag}"
            )
    return inputs, outputs


def _number(place: str, column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not abs(number) <= LARGEST:  # nor is nan
        raise ValueError(f"{place}: {column} is {text!r}; expected a number that a float32 holds")
    return number
