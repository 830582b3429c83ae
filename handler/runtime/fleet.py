"""`dnc serve` with several workers: a `Supervisor` for each, in a thread of its own, and what they have in common.

    signals ──▶ Fleet ──▶ Supervisor 0 ──▶ worker 0 ─┐
                  │  └──▶ Supervisor 1 ──▶ worker 1 ─┴─ listen at one port, together
                  └─ the port, kept while workers come and go; the page of metrics

Each worker ends and comes back by itself. When one is given up, all stop.
"""

import errno
import logging
import queue
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dnc_serve.handler.addresses import bound, host_port, socket_addresses
from dnc_serve.handler.api.scrapes import Scrapes
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.place import Place
from dnc_serve.handler.runtime.contract import Runtime
from dnc_serve.handler.runtime.events import Event, StopAsked
from dnc_serve.handler.runtime.page import machine_page
from dnc_serve.handler.runtime.progress import Progress
from dnc_serve.handler.runtime.supervisor import Stopped, Supervisor

logger = logging.getLogger(__name__)

MakeRuntime = Callable[[Path, str], Runtime]


@dataclass(frozen=True)
class Up:
    """A worker serves."""


@dataclass(frozen=True)
class Over:
    """A worker is not started again: it was stopped, could not start, or was given up."""

    code: int
    failure: BaseException | None


class Fleet:
    """Keeps several workers running. `make_runtime(run_folder, name)` makes what starts one."""

    def __init__(
        self, make_runtime: MakeRuntime, config: ServeConfig, folder: Path, events: "queue.SimpleQueue[Event]"
    ) -> None:
        self._events: queue.SimpleQueue[Event | Up | Over] = events  # type: ignore[assignment]  # ours come there too
        self._shared = ExitStack()
        self._address = self._shared.enter_context(_HeldPort(config)).address
        self._pages: list[str] = []  # the workers', once all serve
        self._metrics = Scrapes(config.host, config.metrics_port, machine_page(self._pages))
        self._shared.callback(self._metrics.stop)
        self._queues: list[queue.SimpleQueue[Event]] = []
        self._supervisors: list[Supervisor] = []
        self._threads: list[threading.Thread] = []
        machine = secrets.token_hex(8)
        for worker in range(config.workers):
            own = folder / str(worker)
            own.mkdir()
            Place(worker, config.workers, machine, self._address, str(folder)).write(own)
            # A port of its own beside the common one, and metrics for the common page.
            settings = config.share(config.workers).model_copy(update={"port": 0, "metrics_port": 0})
            runtime = make_runtime(own, f"worker {worker}")
            self._queues.append(queue.SimpleQueue())
            self._supervisors.append(Supervisor(runtime, settings, own, self._queues[-1], {"worker": worker}))
        self._up = 0
        self._stopping = False

    @property
    def addresses(self) -> dict[str, str]:
        """Where the machine is reached."""
        return {"grpc": self._address, "metrics": self._metrics.address}

    def start(self, progress: Progress) -> None:
        """Returns when all workers serve. Raises StartFailed with the true cause, Stopped."""
        for supervisor in self._supervisors:
            thread = threading.Thread(target=self._keep, args=(supervisor, progress), name="dnc-worker")
            self._threads.append(thread)
            thread.start()
        while self._up < len(self._supervisors):
            match self._events.get():
                case Up():
                    self._up += 1
                case StopAsked():
                    self._stop()
                    self._await_end()
                    raise Stopped
                case Over(_, failure):
                    self._stop()
                    self._await_end(besides=1)
                    raise failure or Stopped
        self._pages.extend(supervisor.addresses["metrics"] for supervisor in self._supervisors)

    def watch(self) -> int:
        """Serves until stopped; returns the exit code."""
        while True:
            match self._events.get():
                case StopAsked():
                    self._stop()
                    return self._await_end()
                case Over(code):  # it was given up
                    self._stop()
                    return max(code, 1, self._await_end(besides=1))

    def end(self) -> None:
        """Leaves no process, and no thread."""
        self._stop()
        for thread in self._threads:
            thread.join()
        self._shared.close()

    def _keep(self, supervisor: Supervisor, progress: Progress) -> None:
        """A worker's thread: the kernel ends what a thread has started when that ends."""
        code, failure = 0, None
        try:
            supervisor.start(progress)
            self._events.put(Up())
            code = supervisor.watch()
        except Stopped:
            pass
        except BaseException as exc:
            failure = exc
        finally:
            supervisor.end()
        self._events.put(Over(code, failure))

    def _stop(self) -> None:
        for events in self._queues:
            events.put(StopAsked())

    def _await_end(self, besides: int = 0) -> int:
        """Returns when no worker is left, the worst of their exit codes; a second signal reaches them all."""
        worst = 0
        while besides < len(self._supervisors):
            match self._events.get():
                case StopAsked():
                    self._stop()
                case Over(code, failure):
                    besides += 1
                    worst = max(worst, code, int(failure is not None))
        return worst


class _HeldPort:
    """The common port: bound, but not listened at, so that nobody else gets it while no worker listens."""

    def __init__(self, config: ServeConfig) -> None:
        where = socket_addresses(config.host, config.port)[0]
        try:
            self._socket = bound(where, socket.SO_REUSEPORT)
        except OSError as exc:
            # Connections of a server with one worker, that has just ended, may linger there. Only then: with this
            # option, others could bind the port too.
            if exc.errno != errno.EADDRINUSE:
                raise
            self._socket = bound(where, socket.SO_REUSEPORT, socket.SO_REUSEADDR)
        self.address = host_port(config.host, int(self._socket.getsockname()[1]))

    def __enter__(self) -> "_HeldPort":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()
