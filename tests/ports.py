"""Ports for servers that come back where they were, and for programs that can't choose one themselves."""

import fcntl
import os
import tempfile
from io import TextIOWrapper
from itertools import chain
from pathlib import Path

from dnc_serve.handler.addresses import why_not_free
from dnc_serve.handler.runtime.ports import LOOPBACK

# Below those that systems give to connections, and to whoever asks for any: nobody is there by chance.
PORTS = range(20_000, 30_000)
_held: list[TextIOWrapper] = []


def own_port() -> int:
    """A port that is given to nobody else, in this run of the tests or another, while this process lives."""
    folder = Path(tempfile.gettempdir()) / f"dnc-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    first = 97 * os.getpid() % len(PORTS)  # most processes find theirs at once
    for port in chain(PORTS[first:], PORTS[:first]):
        lock = (folder / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        if why_not_free(LOOPBACK, port) is None:
            return port
    raise RuntimeError(f"all ports from {PORTS[0]} to {PORTS[-1]} are in use")
