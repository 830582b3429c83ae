"""Timesteps in files: CSV with one timestep a line, under a header or not, or `.npy` with an array [T, *shape]."""

import contextlib
import csv
import io
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from dnc_serve.client.arrays import Array, TensorSpec
from dnc_serve.client.cli.files import LateFile

NPY_MAGIC = b"\x93NUMPY"
STANDARD = "-"
_NOT_HELD = "is not a finite {dtype}; expected numbers that one holds"


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
            raise BadFile(f"{path}: {exc.strerror}; expected a file of timesteps, CSV or .npy") from exc
        self._start = self._file.tell() if self._file.seekable() else None  # a pipe can't be read twice
        self.is_npy = self._file.peek(len(NPY_MAGIC))[: len(NPY_MAGIC)] == NPY_MAGIC
        suffix = "" if path == STANDARD else Path(path).suffix.lower()
        if suffix == ".npy" and not self.is_npy:
            raise BadFile(f"{path}: is no .npy file, whatever its name says; expected what numpy.save writes")
        if suffix == ".csv" and self.is_npy:
            raise BadFile(f"{path}: is a .npy file, whatever its name says; expected text, or the name of a .npy file")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def chunks(self, timesteps: int, spec: TensorSpec) -> Iterator[Array]:
        """The content in chunks [up to `timesteps`, *shape], after a look at a whole file, or at a pipe's first.

        Raises BadFile at once for what that look has found, and later for the rest of a pipe.
        """
        chunks = self._checked(timesteps, spec)
        first = next(chunks, None)
        if first is None:
            raise BadFile(f"{self.name}: holds no timesteps")
        if self._start is None:
            return itertools.chain([first], chunks)
        for _ in chunks:
            pass
        self._file.seek(self._start)
        return self._checked(timesteps, spec)

    def _checked(self, timesteps: int, spec: TensorSpec) -> Iterator[Array]:
        done = 0
        for chunk in self._npy_chunks(timesteps) if self.is_npy else self._csv_chunks(timesteps):
            flat = chunk.reshape(len(chunk), -1)
            if flat.shape[1] != spec.size:
                raise BadFile(f"{self.name}: timesteps of {flat.shape[1]} values; the model takes {spec.size}")
            with np.errstate(over="ignore", invalid="ignore"):
                inputs = flat.astype(spec.numpy)
            held = np.isfinite(inputs) if spec.numpy.kind == "f" else inputs == flat
            if not held.all():
                timestep, value = np.argwhere(~held)[0]
                what = f"{flat[timestep, value]:g} as value {value} of timestep {done + timestep}"
                raise BadFile(f"{self.name}: {what} {_NOT_HELD.format(dtype=spec.dtype)}")
            done += len(chunk)
            yield inputs.reshape(len(inputs), *spec.shape)

    def _npy_chunks(self, timesteps: int) -> Iterator[Array]:
        try:
            array = np.load(io.BytesIO(self._file.read()), allow_pickle=False)
        except (ValueError, EOFError) as exc:
            raise BadFile(f"{self.name}: {exc}") from exc
        if array.ndim < 2 or array.dtype.kind not in "fiub":
            raise BadFile(f"{self.name}: holds {array.dtype} {list(array.shape)}, expected numbers [timesteps, inputs]")
        for start in range(0, len(array), timesteps):
            yield array[start : start + timesteps]

    def _csv_chunks(self, timesteps: int) -> Iterator[Array]:
        rows: list[list[float]] = []
        width = 0
        text = io.TextIOWrapper(self._file, encoding="utf-8-sig", errors="replace", newline="")
        try:
            for line, fields in enumerate(csv.reader(text), 1):
                if not fields:
                    continue
                if not width and _is_header(fields):
                    width = len(fields)
                    continue
                rows.append([self._number(line, field) for field in fields])
                width = width or len(fields)
                if len(fields) != width:
                    raise BadFile(f"{self.name}:{line}: {len(fields)} values, expected {width} as in the lines before")
                if len(rows) == timesteps:
                    yield np.array(rows)
                    rows = []
            if rows:
                yield np.array(rows)
        except csv.Error as exc:
            raise BadFile(f"{self.name}: is no CSV: {exc}") from exc
        finally:
            text.detach()  # it would close the file

    def _number(self, line: int, field: str) -> float:
        try:
            value = float(field)
        except ValueError as exc:
            raise BadFile(f"{self.name}:{line}: {field.strip()!r} is not a number") from exc
        if not math.isfinite(value):
            raise BadFile(f"{self.name}:{line}: {field.strip()!r} is not finite; expected a number")
        return value


def _is_header(fields: list[str]) -> bool:
    """Whether none of a first line's fields is a number."""
    for field in fields:
        with contextlib.suppress(ValueError):
            float(field)
            return False
    return True


@contextlib.contextmanager
def output(path: str) -> Iterator[Callable[[], BinaryIO]]:
    """Standard output or a file, which is there from now on if it can be; what it held is lost when it is called."""
    if path == STANDARD:
        yield lambda: cast(BinaryIO, sys.stdout.buffer)
    else:
        with LateFile(Path(path)) as file:
            yield file.begin


def write(chunks: Iterable[Array], begin: Callable[[], BinaryIO], as_npy: bool) -> int:
    """Writes chunks [T, *shape] as they come (CSV), or all at the end (.npy); returns the number of timesteps.

    What came before a failure is written in either case: those timesteps were applied.
    """
    return _write_npy(chunks, begin) if as_npy else _write_csv(chunks, begin)


def _write_npy(chunks: Iterable[Array], begin: Callable[[], BinaryIO]) -> int:
    arrays: list[Array] = []
    try:
        for chunk in chunks:
            arrays.append(chunk)  # noqa: PERF402  those before a failure count
    finally:
        if arrays:
            # Given a pipe's own file, numpy writes past its buffer, and the header may come last or not at all.
            whole = io.BytesIO()
            np.save(whole, np.concatenate(arrays))
            begin().write(whole.getvalue())
    return sum(map(len, arrays))


def _write_csv(chunks: Iterable[Array], begin: Callable[[], BinaryIO]) -> int:
    written = 0
    for chunk in chunks:
        file = begin()
        form = ".9g" if chunk.dtype.kind == "f" else ""  # nine digits give every float32 back
        for row in chunk.reshape(len(chunk), -1).tolist():
            file.write((",".join(f"{value:{form}}" for value in row) + "\n").encode())
        file.flush()
        written += len(chunk)
    return written
