"""What `dnc serve` does once it knows what to start: start it, watch it, start it again when it dies, and stop it in
good order.

One thread decides; everything that happens reaches it as an event, in order:

    signals, the child's end, its log ──────▶ events ──▶ start → serve → stop
    the worker, over the control line ─────▶

The child is TorchServe, which starts the worker, or the worker itself: a `Runtime` says how.
"""

import contextlib
import logging
import queue
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.child import Child, Line, StartFailed
from dnc_serve.handler.runtime.contract import Runtime
from dnc_serve.handler.runtime.control import (
    ControlServer,
    WorkerDrained,
    WorkerFailed,
    WorkerGone,
    WorkerReady,
    WorkerStarted,
)
from dnc_serve.handler.runtime.events import ChildEnded, Event, LoadFailed, StopAsked
from dnc_serve.handler.runtime.logs import pass_on
from dnc_serve.handler.runtime.ports import LOOPBACK, with_free_ports
from dnc_serve.handler.runtime.probe import health, is_open
from dnc_serve.handler.runtime.progress import Progress
from dnc_serve.handler.runtime.worker_config import CONFIG_FILE

logger = logging.getLogger(__name__)

WORKER_TIMEOUT_S = 180.0  # until a worker begins to load the model
START_TIMEOUT_S = 900.0  # until a worker has loaded a model, however large
LAST_WORD_S = 2.0
DOORS_TIMEOUT_S = 30.0
PORT_ATTEMPTS = 5
RESTART_DELAY_S = 0.5
LONGEST_RESTART_DELAY_S = 10.0
STEADY_S = 60.0  # serving for so long makes earlier restarts forgotten
CHILD_PATIENCE_S = 3.0


class PortLost(StartFailed):
    """Between the choice of a free port and its use, another process has taken it."""


class Stopped(Exception):
    """The stop was asked for before the server was up."""


class Supervisor:
    """Keeps one child of a runtime, and through it one worker, running.

    `mark` is what lines of the log say beside what they do: which worker it is, where there are several.
    """

    def __init__(
        self,
        runtime: Runtime,
        config: ServeConfig,
        folder: Path,
        events: "queue.SimpleQueue[Event]",
        mark: Mapping[str, int] | None = None,
    ) -> None:
        self._mark = dict(mark or {})
        self._runtime = runtime
        self._requested = config
        self._config = config
        self._folder = folder
        self._events = events
        self._control = ControlServer(folder, events.put)
        self._child: Child | None = None
        self._worker: WorkerReady | None = None
        self._up = False

    # Start.

    def start(self, progress: Progress) -> None:
        """Returns when everything answers. Raises StartFailed with the true cause, Stopped."""
        for attempt in range(PORT_ATTEMPTS):
            try:
                self._launch(progress)
                break
            except PortLost:
                self.end_processes()
                if attempt + 1 == PORT_ATTEMPTS:
                    raise
        assert self._worker is not None
        # A worker that is started again must come back where the clients know it.
        ports = {
            "port": int(self._worker.grpc.rpartition(":")[2]),
            "metrics_port": int(self._worker.metrics.rpartition(":")[2]),
        }
        if self._worker.http:
            ports["http_port"] = int(self._worker.http.rpartition(":")[2])
        self._config = self._config.model_copy(update=ports)
        self._write_config()
        self._up = True

    @property
    def addresses(self) -> dict[str, str]:
        """All endpoints, once it has started."""
        assert self._worker is not None
        addresses = {
            "grpc": self._worker.grpc,
            "metrics": self._worker.metrics,
            **self._runtime.addresses(self._config),
        }
        if self._worker.http:
            addresses["inference"] = self._worker.http
        if self._config.listen:
            addresses["socket"] = self._config.listen
        return addresses

    def _launch(self, progress: Progress) -> None:
        self._config = with_free_ports(self._requested, self._runtime.port_settings)
        self._write_config()
        self._start_child()
        self._await_worker(progress)
        progress.awaits("the endpoints")
        self._await_doors()

    def _write_config(self) -> None:
        path = self._folder / CONFIG_FILE
        beside = path.with_suffix(".new")
        beside.touch(mode=0o600)  # it may hold the store's password
        beside.write_text(self._config.model_dump_json())
        beside.replace(path)

    def _start_child(self) -> None:
        self._worker = None
        self._child = self._runtime.start(
            self._config, self._on_line, lambda ended: self._events.put(ChildEnded(ended))
        )

    def _await_worker(self, progress: Progress) -> None:
        assert self._child is not None
        progress.awaits(f"{self._runtime.name} to begin")
        timeout_s = WORKER_TIMEOUT_S
        deadline = time.monotonic() + timeout_s
        before = self._control.workers  # of an attempt that failed; their last words may still be on the way
        failed, gone = False, ""
        while True:
            event = self._next(deadline - time.monotonic())
            match event:
                case WorkerStarted(number) if number > before and not failed:
                    progress.awaits("the worker to load the model and step it")
                    timeout_s = START_TIMEOUT_S
                    deadline = time.monotonic() + timeout_s
                case WorkerReady():
                    self._worker = event
                    return
                case WorkerFailed(cause=cause):
                    raise StartFailed(cause)
                case LoadFailed(by) | ChildEnded(by) if by is self._child:
                    # The worker's own word, if it had one, is better than what was printed, and may come a bit later.
                    failed = True
                    deadline = min(deadline, time.monotonic() + LAST_WORD_S)
                case WorkerGone(number) if number > before:
                    failed, gone = True, "the worker ended while it loaded the model, as if killed for its memory: "
                    deadline = min(deadline, time.monotonic() + LAST_WORD_S)
                case StopAsked():
                    raise Stopped
                case None if failed:
                    raise self._failed(gone)
                case None:
                    raise self._failed(f"the worker was not ready after {timeout_s:.0f} s: ")

    def _failed(self, what: str = "") -> StartFailed:
        """What the child gives as the cause."""
        assert self._child is not None
        cause = self._child.cause()
        chosen = any(getattr(self._requested, name) == 0 for name in self._runtime.port_settings)
        return PortLost(what + cause) if chosen and self._runtime.port_was_taken(cause) else StartFailed(what + cause)

    def _await_doors(self) -> None:
        assert self._worker is not None and self._child is not None
        deadline = time.monotonic() + DOORS_TIMEOUT_S
        for name in self._runtime.port_settings:
            address = f"{LOOPBACK}:{getattr(self._config, name)}"
            while not is_open(address):
                match self._next(0.05):
                    case StopAsked():
                        raise Stopped
                    case LoadFailed(by) | ChildEnded(by) if by is self._child:
                        raise self._failed()
                if time.monotonic() > deadline:
                    raise self._failed(f"{self._runtime.name} doesn't listen at {address}: ")
        answer = health(self._worker.grpc, self._config, DOORS_TIMEOUT_S)
        if answer != "SERVING":
            raise StartFailed(f"the streaming endpoint at {self._worker.grpc} is not healthy: {answer}")

    # Serve.

    def watch(self) -> int:
        """Serves until stopped; returns the exit code."""
        name, restarts = self._runtime.name, 0
        up_since: float | None = time.monotonic()
        down_since: float | None = None
        while True:
            event = self._next(1.0)
            now = time.monotonic()
            if up_since is not None and now - up_since > STEADY_S:
                restarts = 0
            match event:
                case StopAsked():
                    return self._stop()
                case WorkerReady():
                    self._worker, up_since, down_since = event, now, None
                    logger.info("a worker serves again", extra={"worker_pid": event.pid, **self._mark})
                case WorkerFailed(cause=cause):
                    logger.error("a worker could not start again: %s", cause, extra=self._mark)
                case WorkerGone():
                    if self._worker is not None:
                        logger.warning("the worker ended", extra={"pid": self._worker.pid, **self._mark})
                    self._worker, up_since = None, None
                    down_since = down_since or now
                case ChildEnded(child) if child is self._child:
                    restarts += 1
                    if restarts > self._runtime.restarts:
                        logger.error("%s ended %d times in a row, giving up: %s", name, restarts, child.cause())
                        return 1
                    delay_s = restart_delay_s(restarts)
                    logger.error("%s ended (%s); it is started again in %.1f s", name, child.how_it_ended(), delay_s)
                    if self._runtime.port_was_taken(child.cause()):
                        self._move_child()
                    if not self._restart(delay_s):
                        return 0
                    up_since, down_since = None, time.monotonic()
            down_s = now - down_since if down_since is not None else 0.0
            if down_s > self._runtime.worker_patience_s and self._child is not None:
                logger.error("no worker for %.0f s; %s is killed", down_s, name)
                down_since = None
                self._child.kill()

    def _restart(self, delay_s: float) -> bool:
        """Starts the child again after the delay; False if a stop was asked for meanwhile."""
        self.end_processes()
        deadline = time.monotonic() + delay_s
        while (event := self._next(deadline - time.monotonic())) is not None:
            if isinstance(event, StopAsked):
                return False
        self._start_child()
        return True

    def _move_child(self) -> None:
        """While it was down, somebody took one of the free ports that were chosen for it: it gets others."""
        chosen = with_free_ports(self._requested, self._runtime.port_settings)
        ports = {name: getattr(chosen, name) for name in self._runtime.port_settings}
        self._config = self._config.model_copy(update=ports)
        logger.warning(
            "%s's endpoints are elsewhere from now on", self._runtime.name, extra=self._runtime.addresses(self._config)
        )

    # Stop.

    def _stop(self) -> int:
        """Drains and stops all within the grace time; a second signal kills. Returns the exit code."""
        grace_s = self._config.grace_s
        deadline = time.monotonic() + grace_s
        # What stays for the child's end after the sessions' own.
        reserve_s = min(CHILD_PATIENCE_S + 1.0, grace_s / 2)
        logger.info("stopping", extra={"grace_s": grace_s})
        code = 0
        if self._control.drain(grace_s - reserve_s):
            code = self._await_drain(deadline - reserve_s / 2)
        if self._child is not None and code == 0:
            self._child.terminate(min(CHILD_PATIENCE_S, deadline - time.monotonic()))
        logger.info("stopped")
        return code

    def _await_drain(self, deadline: float) -> int:
        while True:
            match self._next(deadline - time.monotonic()):
                case WorkerDrained() | WorkerGone():
                    return 0
                case ChildEnded():
                    return 0
                case StopAsked():
                    logger.warning("a second signal: killing")
                    return 1
                case None:
                    logger.error("the worker did not drain in time: killing")
                    return 1

    def end(self) -> None:
        """Leaves no process."""
        self._control.close()
        self.end_processes()

    def end_processes(self) -> None:
        """Kills whatever is left of the child and its workers, orphans included, and collects them."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        if not self._runtime.orphans:
            return
        left = psutil.Process().children(recursive=True)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5.0)

    # Events.

    def _next(self, timeout_s: float) -> Event | None:
        """The next event, or None when the time is over."""
        try:
            return self._events.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    def _on_line(self, child: Child, line: Line) -> None:
        if self._runtime.load_failed(line):
            self._events.put(LoadFailed(child))
        # Until the server is up, a failure is told once and in one line: what leads to it is for whoever debugs.
        if self._up or str(line.get("logger")).startswith("dnc_serve") or self._config.log_level == "debug":
            pass_on({**line, **self._mark}, self._config.log_level)


def restart_delay_s(restarts: int) -> float:
    """How long to wait before a child is started again that has ended so often in a row."""
    doublings = min(restarts - 1, 10)  # a day of restarts would overflow
    return min(RESTART_DELAY_S * 2.0**doublings, LONGEST_RESTART_DELAY_S)
