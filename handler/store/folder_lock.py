"""One server for one state folder: a lock that the operating system takes back when its holder dies."""

import fcntl
import os
from pathlib import Path

from dnc_serve.handler.store.contract import StoreRefused


class FolderLock:
    """The exclusive right to a folder, for the life of the process or until `release`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "lock"
        self._descriptor: int | None = None

    def take(self) -> None:
        """Takes the lock at once; raises `StoreRefused` with the holder's process id if another has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreRefused(
                f"the state folder {self._folder} is in use by the server with process id {holder}; "
                f"stop that one, or give this one a state folder of its own"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        # The file stays: were it removed, two servers could hold locks on two files of the same name.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
