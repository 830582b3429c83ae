"""`dnc serve`: TorchServe started, watched, started again when it dies, and stopped in good order.

One thread decides; everything that happens reaches it as an event, in order:

    signals, Java's end, TorchServe's log ──▶ events ──▶ start → serve → stop
    the worker, over the control line ─────▶
"""

import contextlib
import logging
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from dnc_serve.handler.config import PORTS, ServeConfig
from dnc_serve.handler.torchserve.archive import MODEL_NAME, write_archive
from dnc_serve.handler.torchserve.artifact import resolve_artifact
from dnc_serve.handler.torchserve.control import (
    ControlServer,
    WorkerDrained,
    WorkerFailed,
    WorkerGone,
    WorkerReady,
    WorkerStarted,
)
from dnc_serve.handler.torchserve.events import Event, JavaEnded, LoadFailed, StopAsked, Stops
from dnc_serve.handler.torchserve.files import check_files
from dnc_serve.handler.torchserve.logs import pass_on
from dnc_serve.handler.torchserve.parent import adopt_orphans
from dnc_serve.handler.torchserve.ports import LOOPBACK, check_ports, configured_ports, free_port, with_free_ports
from dnc_serve.handler.torchserve.probe import health, is_open
from dnc_serve.handler.torchserve.progress import Progress
from dnc_serve.handler.torchserve.run_folder import run_folder
from dnc_serve.handler.torchserve.torchserve import TorchServe
from dnc_serve.handler.torchserve.worker_config import CONFIG_FILE

logger = logging.getLogger(__name__)

WORKER_TIMEOUT_S = 180.0  # until TorchServe is up and its worker begins to load the model
START_TIMEOUT_S = 900.0  # until a worker has loaded a model, however large
LAST_WORD_S = 2.0
DOORS_TIMEOUT_S = 30.0
PORT_ATTEMPTS = 5
# TorchServe starts a dead worker again by itself; if none is back after this long, TorchServe is what is started again.
WORKER_PATIENCE_S = 90.0
RESTARTS = 5
RESTART_DELAY_S = 0.5
LONGEST_RESTART_DELAY_S = 10.0
STEADY_S = 60.0  # serving for so long makes earlier restarts forgotten
JAVA_PATIENCE_S = 3.0
LOAD_FAILED = ("Backend worker error", "Auto recovery failed again")  # what TorchServe's log says then
BIND_FAILED = "Failed to bind to address"
TORCHSERVE_PORTS = tuple(name for name in PORTS if name.startswith("torchserve_"))


class StartFailed(Exception):
    """The server can't start; the message is the true cause."""


class PortLost(StartFailed):
    """Between the choice of a free port and its use, another process has taken it."""


class Stopped(Exception):
    """The stop was asked for before the server was up."""


def serve(config: ServeConfig, stops: Stops, say: Callable[[str], None]) -> int:
    """Serves until stopped; returns the exit code. `say` gets the line that begins with `ready`.

    Raises StartFailed, ModelError, FileUnusable, AddressUnusable, FileNotFoundError for what isn't installed.
    """
    check_files(config)
    adopt_orphans()
    with run_folder() as folder, Progress() as progress:
        progress.awaits("the model to be exported")
        artifact = resolve_artifact(config.model, config.nr_cells, config.state_dir / "artifacts", folder)
        check_ports(config)
        try:
            write_archive(artifact, folder / "store" / f"{MODEL_NAME}.mar", config)
        except OSError as exc:
            raise StartFailed(
                f"the temp folder {folder.parent} can't hold the model's archive ({exc.strerror}); set TMPDIR to one "
                "with more room"
            ) from exc
        supervisor = Supervisor(config, folder, stops.events)
        try:
            supervisor.start(progress)
            progress.end()
            say(supervisor.ready_line())
            return supervisor.watch()
        except Stopped:
            return 0
        finally:
            supervisor.end()


class Supervisor:
    """Keeps one TorchServe running."""

    def __init__(self, config: ServeConfig, folder: Path, events: "queue.SimpleQueue[Event]") -> None:
        self._requested = config
        self._config = config
        self._folder = folder
        self._events = events
        self._control = ControlServer(folder, events.put)
        self._torchserve: TorchServe | None = None
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
        self._config = self._config.model_copy(update=ports)
        self._write_config()
        self._up = True

    def ready_line(self) -> str:
        """All addresses, as `name=host:port`."""
        assert self._worker is not None
        addresses = {"grpc": self._worker.grpc, "metrics": self._worker.metrics, **self._torchserve_addresses()}
        return "ready " + " ".join(f"{name}={address}" for name, address in addresses.items())

    def _torchserve_addresses(self) -> dict[str, str]:
        config = self._config
        return {
            "http": f"{LOOPBACK}:{config.torchserve_http_port}",
            "torchserve-grpc": f"{LOOPBACK}:{config.torchserve_grpc_port}",
            "management": f"{LOOPBACK}:{config.torchserve_management_port}",
        }

    def _launch(self, progress: Progress) -> None:
        self._config = with_free_ports(self._requested, TORCHSERVE_PORTS)
        self._write_config()
        self._start_torchserve()
        self._await_worker(progress)
        progress.awaits("TorchServe's own endpoints")
        self._await_doors()

    def _write_config(self) -> None:
        path = self._folder / CONFIG_FILE
        beside = path.with_suffix(".new")
        beside.touch(mode=0o600)  # it may hold the store's password
        beside.write_text(self._config.model_dump_json())
        beside.replace(path)

    def _start_torchserve(self) -> None:
        self._worker = None
        worker_port = free_port(configured_ports(self._config))
        self._torchserve = TorchServe(
            self._config, self._folder, worker_port, self._on_line, lambda ended: self._events.put(JavaEnded(ended))
        )

    def _await_worker(self, progress: Progress) -> None:
        assert self._torchserve is not None
        progress.awaits("TorchServe to start its worker")
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
                case LoadFailed(by) | JavaEnded(by) if by is self._torchserve:
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
                    where = "there" if is_open(f"{LOOPBACK}:{self._config.torchserve_http_port}") else "not there"
                    raise self._failed(f"the worker was not ready after {timeout_s:.0f} s, TorchServe is {where}: ")

    def _failed(self, what: str = "") -> StartFailed:
        """What TorchServe gives as the cause."""
        assert self._torchserve is not None
        cause = self._torchserve.cause()
        chosen = any(getattr(self._requested, name) == 0 for name in TORCHSERVE_PORTS)
        return PortLost(what + cause) if chosen and BIND_FAILED in cause else StartFailed(what + cause)

    def _await_doors(self) -> None:
        assert self._worker is not None and self._torchserve is not None
        deadline = time.monotonic() + DOORS_TIMEOUT_S
        for name in TORCHSERVE_PORTS:
            address = f"{LOOPBACK}:{getattr(self._config, name)}"
            while not is_open(address):
                match self._next(0.05):
                    case StopAsked():
                        raise Stopped
                    case LoadFailed(by) | JavaEnded(by) if by is self._torchserve:
                        raise self._failed()
                if time.monotonic() > deadline:
                    raise self._failed(f"TorchServe doesn't listen at {address}: ")
        answer = health(self._worker.grpc, self._config, DOORS_TIMEOUT_S)
        if answer != "SERVING":
            raise StartFailed(f"the streaming endpoint at {self._worker.grpc} is not healthy: {answer}")

    # Serve.

    def watch(self) -> int:
        """Serves until stopped; returns the exit code."""
        restarts = 0
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
                    logger.info("a worker serves again", extra={"worker_pid": event.pid})
                case WorkerFailed(cause=cause):
                    logger.error("a worker could not start again: %s", cause)
                case WorkerGone():
                    if self._worker is not None:
                        logger.warning("the worker ended; TorchServe starts another", extra={"pid": self._worker.pid})
                    self._worker, up_since = None, None
                    down_since = down_since or now
                case JavaEnded(torchserve=torchserve) if torchserve is self._torchserve:
                    restarts += 1
                    if restarts > RESTARTS:
                        logger.error("TorchServe ended %d times in a row, giving up: %s", restarts, torchserve.cause())
                        return 1
                    delay_s = min(RESTART_DELAY_S * 2 ** (restarts - 1), LONGEST_RESTART_DELAY_S)
                    logger.error("TorchServe ended; it is started again in %.1f s", delay_s)
                    if BIND_FAILED in torchserve.cause():
                        self._move_torchserve()
                    if not self._restart(delay_s):
                        return 0
                    up_since, down_since = None, time.monotonic()
            if down_since is not None and now - down_since > WORKER_PATIENCE_S and self._torchserve is not None:
                logger.error("no worker for %.0f s; TorchServe is killed", now - down_since)
                down_since = None
                self._torchserve.kill()

    def _restart(self, delay_s: float) -> bool:
        """Starts TorchServe again after the delay; False if a stop was asked for meanwhile."""
        self.end_processes()
        deadline = time.monotonic() + delay_s
        while (event := self._next(deadline - time.monotonic())) is not None:
            if isinstance(event, StopAsked):
                return False
        self._start_torchserve()
        return True

    def _move_torchserve(self) -> None:
        """While it was down, somebody took one of the free ports that were chosen for it: it gets others."""
        chosen = with_free_ports(self._requested, TORCHSERVE_PORTS)
        ports = {name: getattr(chosen, name) for name in TORCHSERVE_PORTS}
        self._config = self._config.model_copy(update=ports)
        logger.warning("TorchServe's endpoints are elsewhere from now on", extra=self._torchserve_addresses())

    # Stop.

    def _stop(self) -> int:
        """Drains and stops all within the grace time; a second signal kills. Returns the exit code."""
        grace_s = self._config.grace_s
        deadline = time.monotonic() + grace_s
        # What stays for Java's end after the sessions' own.
        reserve_s = min(JAVA_PATIENCE_S + 1.0, grace_s / 2)
        logger.info("stopping", extra={"grace_s": grace_s})
        code = 0
        if self._control.drain(grace_s - reserve_s):
            code = self._await_drain(deadline - reserve_s / 2)
        if self._torchserve is not None and code == 0:
            self._torchserve.terminate(min(JAVA_PATIENCE_S, deadline - time.monotonic()))
        logger.info("stopped")
        return code

    def _await_drain(self, deadline: float) -> int:
        while True:
            match self._next(deadline - time.monotonic()):
                case WorkerDrained() | WorkerGone():
                    return 0
                case JavaEnded():
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
        """Kills whatever is left of TorchServe and its workers, orphans included, and collects them."""
        if self._torchserve is not None:
            self._torchserve.kill()
            self._torchserve = None
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

    def _on_line(self, torchserve: TorchServe, line: dict[str, Any]) -> None:
        message = str(line.get("message"))
        if message in LOAD_FAILED or BIND_FAILED in message:
            self._events.put(LoadFailed(torchserve))
        # Until the server is up, a failure is told once and in one line: what leads to it is for whoever debugs.
        if self._up or str(line.get("logger")).startswith("dnc_serve") or self._config.log_level == "debug":
            pass_on(line, self._config.log_level)
