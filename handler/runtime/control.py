"""The line between `dnc serve` and its worker: a socket in the run folder, JSON lines.

    worker → dnc serve   by connecting, that it begins to load the model; ready, with its addresses; failed, with the
                         true cause; drained
    dnc serve → worker   drain, within so many seconds

TorchServe, where it stands between them, passes neither a cause nor an order on. When the line breaks, each side knows
that the other is gone.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOCKET_NAME = "control"


@dataclass(frozen=True)
class WorkerStarted:
    """A worker runs, and begins to load the model; the first one is number 1."""

    number: int


@dataclass(frozen=True)
class WorkerReady:
    """A worker listens, and a real step succeeded."""

    pid: int
    grpc: str
    metrics: str
    http: str = ""


@dataclass(frozen=True)
class WorkerFailed:
    """A worker could not start."""

    cause: str


@dataclass(frozen=True)
class WorkerDrained:
    """A worker has stopped its sessions in good order."""


@dataclass(frozen=True)
class WorkerGone:
    """A worker ended."""

    number: int


WorkerEvent = WorkerStarted | WorkerReady | WorkerFailed | WorkerDrained | WorkerGone
_EVENTS: dict[str, type[Any]] = {"ready": WorkerReady, "failed": WorkerFailed, "drained": WorkerDrained}


class ControlServer:
    """The end of `dnc serve`. `on_event` is called in a thread for each thing that a worker says."""

    def __init__(self, run_folder: Path, on_event: Callable[[WorkerEvent], None]) -> None:
        self._on_event = on_event
        self._worker: socket.socket | None = None
        self.workers = 0  # that have connected so far
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(run_folder / SOCKET_NAME))
        self._socket.listen()
        threading.Thread(target=self._accept, name="dnc-control", daemon=True).start()

    def drain(self, grace_s: float) -> bool:
        """Tells the worker to drain; False if there is none."""
        if self._worker is None:
            return False
        try:
            _send(self._worker, {"order": "drain", "grace_s": grace_s})
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                worker, _ = self._socket.accept()
            except OSError:  # closed
                return
            self._worker = worker
            self.workers += 1
            self._on_event(WorkerStarted(self.workers))
            threading.Thread(
                target=self._listen, args=(worker, self.workers), name="dnc-control-worker", daemon=True
            ).start()

    def _listen(self, worker: socket.socket, number: int) -> None:
        for message in _received(worker):
            event = _EVENTS[message.pop("event")]
            self._on_event(event(**message))
        worker.close()
        if self._worker is worker:
            self._worker = None
            self._on_event(WorkerGone(number))


class ControlLine:
    """The worker's end."""

    def __init__(self, run_folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(run_folder / SOCKET_NAME))

    def ready(self, grpc: str, metrics: str, http: str = "") -> None:
        self._say(event="ready", pid=os.getpid(), grpc=grpc, metrics=metrics, http=http)

    def failed(self, cause: str) -> None:
        self._say(event="failed", cause=cause)

    def drained(self) -> None:
        self._say(event="drained")

    def listen(self, on_drain: Callable[[float], None], on_gone: Callable[[], None]) -> None:
        """Calls `on_drain(grace_s)` when so ordered, and `on_gone` when `dnc serve` has ended, in a thread."""

        def listen() -> None:
            for message in _received(self._socket):
                on_drain(float(message["grace_s"]))
            on_gone()

        threading.Thread(target=listen, name="dnc-control", daemon=True).start()

    def _say(self, **message: object) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: the listener sees that too
            _send(self._socket, message)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _received(connection: socket.socket) -> Any:
    with contextlib.suppress(OSError), connection.makefile("rb") as lines:
        for line in lines:
            yield json.loads(line)
