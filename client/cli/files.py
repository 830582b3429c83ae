"""Files that a command writes: whole or not at all, and nothing of a command that failed."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


def reason(error: Exception) -> str:
    """What went wrong, without the number that the operating system has for it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@contextlib.contextmanager
def expecting(file: object, expected: str) -> Iterator[None]:
    """Whoever opens the file within is told which one it was, and what was expected, if that fails."""
    try:
        yield
    except OSError as exc:
        raise type(exc)(f"{file}: {exc.strerror}; expected {expected}") from exc


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside the path, of the same suffix, that takes its place in the end; after a failure nothing has changed.

    A device or a pipe is its own.
    """
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; expected the name of a file")
        yield path
        return
    real = path.resolve()  # what a link leads to is replaced, not the link
    beside = real.with_name(f".{real.stem}.{os.getpid()}{real.suffix}")
    try:
        yield beside
        beside.replace(real)
    except FileNotFoundError as exc:
        raise FileNotFoundError(f"{path} can't be written: there is no folder {real.parent}") from exc
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[Path]:
    """The folder, made if it isn't there, parents too; those that a failure leaves empty are removed again."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; expected one, or a name that is free")
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


@contextlib.contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """A folder for files that take their places in another, which is made if it isn't there, when all are whole."""
    with made_folder(folder), tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as beside:
        yield Path(beside)
        for file in Path(beside).iterdir():
            file.replace(folder / file.name)


class LateFile:
    """A file that is written as results come.

    It is opened at once, so that a wrong name is told before anything is done; what it held is lost only when there is
    something to write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_new = not path.exists()
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb")
        self._begun = False

    def begin(self) -> BinaryIO:
        """The file, empty."""
        if not self._begun and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.truncate(0)
        self._begun = True
        return self._file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if self._is_new and not self._begun:
            self._path.unlink(missing_ok=True)
