"""The private folder of one running server: the archive and TorchServe's files if it serves, and the sockets."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "dnc-serve-"
LOCK = "lock"
# Sockets lie in it, `.ts.sock.65535` the longest, and the whole path of a socket has at most 107 bytes.
LONGEST_PATH = 107 - len("/.ts.sock.65535")


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A new folder that only this user can read, gone afterwards; what killed servers left behind goes as well."""
    base = _base()
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    try:
        with _locked(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _base() -> Path:
    """The temp folder, or /tmp if sockets in that one would have too long a path."""
    base = Path(tempfile.gettempdir())
    example = base / f"{PREFIX}12345678"
    return base if len(os.fsencode(example)) <= LONGEST_PATH else Path("/tmp")  # noqa: S108


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Named only once it is locked: another server may be sweeping.
    unnamed = path.with_suffix(".new")
    with unnamed.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unnamed.rename(path)
        yield


def _sweep(base: Path) -> None:
    """Removes the folders whose servers are gone without having been able to do it."""
    for lock in base.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
