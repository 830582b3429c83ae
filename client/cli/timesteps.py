"""Timesteps in files: CSV with one timestep a line, or `.npy` with an array [T, I]."""

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO, cast

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
NPY_MAGIC = b"\x93NUMPY"
STANDARD = "-"


class BadFile(Exception):
    """A file can't be read as timesteps; the message begins with its name and line."""


class Source:
    """A file of timesteps, or standard input; its content says which of the two formats it is.

    Raises BadFile, also for a content that its name belies.
    """

    def __init__(self, path: str) -> None:
        self.name = "standard input" if path == STANDARD else path
        try:
            self._file = (
                cast(io.BufferedReader, sys.stdin.buffer) if path == STANDARD else Path(path).open("rb")  # noqa: SIM115
            )
        except OSError as exc:
            raise BadFile(f"{path}: {exc.strerror}") from exc
        self.is_npy = self._file.peek(len(NPY_MAGIC))[: len(NPY_MAGIC)] == NPY_MAGIC
        suffix = "" if path == STANDARD else Path(path).suffix.lower()
        if suffix == ".npy" and not self.is_npy:
            raise BadFile(f"{path}: is no .npy file, whatever its name says; expected what numpy.save writes")
        if suffix == ".csv" and self.is_npy:
            raise BadFile(f"{path}: is a .npy file, whatever its name says; expected text, or the name of a .npy file")

    def chunks(self, timesteps: int) -> Iterator[Float32]:
        """The content in chunks [up to `timesteps`, I]. Raises BadFile."""
        return self._npy_chunks(timesteps) if self.is_npy else self._csv_chunks(timesteps)

    def _npy_chunks(self, timesteps: int) -> Iterator[Float32]:
        try:
            array = np.load(io.BytesIO(self._file.read()), allow_pickle=False)
        except (ValueError, EOFError) as exc:
            raise BadFile(f"{self.name}: {exc}") from exc
        if array.ndim != 2 or array.dtype.kind not in "fiub":
            raise BadFile(f"{self.name}: holds {array.dtype} {list(array.shape)}, expected numbers [timesteps, inputs]")
        for start in range(0, len(array), timesteps):
            yield array[start : start + timesteps].astype(np.float32)

    def _csv_chunks(self, timesteps: int) -> Iterator[Float32]:
        rows: list[list[float]] = []
        width = 0
        text = io.TextIOWrapper(self._file, encoding="utf-8-sig", errors="replace", newline="")
        for line, fields in enumerate(csv.reader(text), 1):
            if not fields:
                continue
            rows.append([self._number(line, field) for field in fields])
            width = width or len(fields)
            if len(fields) != width:
                raise BadFile(f"{self.name}:{line}: {len(fields)} values, expected {width} as in the lines before")
            if len(rows) == timesteps:
                yield np.array(rows, np.float32)
                rows = []
        if rows:
            yield np.array(rows, np.float32)

    def _number(self, line: int, field: str) -> float:
        try:
            return float(field)
        except ValueError as exc:
            raise BadFile(f"{self.name}:{line}: {field.strip()!r} is not a number") from exc


def write(chunks: Iterable[Float32], path: str, as_npy: bool) -> int:
    """Writes chunks [T, O] as they come (CSV), or all at the end (.npy); returns the number of timesteps."""
    if as_npy:
        arrays = list(chunks)
        array = np.concatenate(arrays) if arrays else np.zeros((0, 0), np.float32)
        if path == STANDARD:
            # Given a pipe's own file, numpy writes past its buffer, and the header may come last or not at all.
            whole = io.BytesIO()
            np.save(whole, array)
            sys.stdout.buffer.write(whole.getvalue())
        else:
            with Path(path).open("wb") as file:
                np.save(file, array)
        return len(array)
    if path == STANDARD:
        return _write_csv(chunks, sys.stdout)
    with Path(path).open("w", newline="") as text:
        return _write_csv(chunks, text)


def _write_csv(chunks: Iterable[Float32], text: TextIO) -> int:
    written = 0
    for chunk in chunks:
        for row in chunk.tolist():
            # Nine digits give every float32 back.
            print(",".join(f"{value:.9g}" for value in row), file=text)
        text.flush()
        written += len(chunk)
    return written
