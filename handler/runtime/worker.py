"""A worker: a process that owns one `DncServer`, and ends with the `dnc serve` above it."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.place import Place
from dnc_serve.handler.runtime.control import ControlLine
from dnc_serve.handler.runtime.logs import configure_logs
from dnc_serve.handler.runtime.parent import die_with, watch
from dnc_serve.handler.runtime.worker_config import own_run_folder, worker_config, worker_place

if TYPE_CHECKING:
    from dnc_serve.handler.server import DncServer

logger = logging.getLogger(__name__)


class Worker:
    """Serves artifacts from `initialize` on, until it is drained or nobody is above it any more."""

    def __init__(self) -> None:
        self._server: DncServer | None = None
        self._control: ControlLine | None = None
        self._leaving = threading.Lock()

    def initialize(self, parent: int, artifacts: Sequence[Path], choose_device: Callable[[str], str]) -> ServeConfig:
        """Opens the endpoints; returns the configuration. Raises what went wrong, after telling `dnc serve`.

        `parent` is the process above; `choose_device` makes of the configured device the one that steps.
        """
        die_with(parent)
        watch(parent, self._end)
        run_folder = own_run_folder()
        if run_folder is not None:
            self._control = ControlLine(run_folder)
            self._control.listen(self.drain, self._end)
        try:
            config = worker_config(run_folder)
            self._start(config, worker_place(run_folder), artifacts, choose_device)
        except Exception as exc:
            if self._control is not None:
                self._control.failed(_cause(exc))
            raise
        return config

    def _start(
        self, config: ServeConfig, place: Place | None, artifacts: Sequence[Path], choose_device: Callable[[str], str]
    ) -> None:
        configure_logs(config.log_level, sys.stdout)  # which whoever started this process passes on to its own log
        # Here, not above: torch takes seconds, and a failing import is a cause to be told like any other.
        from dnc_serve.handler.server import DncServer

        device = choose_device(config.device)
        server = DncServer(config, artifacts, device, place)
        addresses = server.start()
        self._server = server
        logger.info("serving", extra={"grpc": addresses.grpc, "metrics": addresses.metrics, "device": device})
        if self._control is not None:
            self._control.ready(addresses.grpc, addresses.metrics, addresses.http)

    def drain(self, grace_s: float) -> None:
        """Ends all sessions in good order and says so; the process stays."""
        with self._leaving:
            server = self._server
            if server is not None:
                server.drain(grace_s)
                self._server = None
                server.stop()
        if self._control is not None:
            self._control.drained()

    def _end(self) -> None:
        """Nobody is above any more. What was answered is as durable as promised, so there is nothing to wait for."""
        os._exit(1)


def _cause(error: BaseException) -> str:
    """The error in one line; the class is named where the message alone would say too little."""
    text = " ".join(str(error).split())
    expected = isinstance(error, OSError | ServeError) or type(error).__module__.startswith("dnc_serve")
    return text if text and expected else f"{type(error).__name__}: {text}"
