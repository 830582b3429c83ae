"""The worker that TorchServe starts: it owns one `DncServer`, and answers the calls that TorchServe hands over.

TorchServe calls `handle` in the process's only loop: an exception there fails a whole batch, and an answer that takes
longer than `responseTimeout` gets the worker killed, with all that it holds. So every row is answered, and in time.
"""

import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnc_serve.handler.api.torchserve_calls import answer
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.torchserve.control import ControlLine
from dnc_serve.handler.torchserve.logs import configure_logs
from dnc_serve.handler.torchserve.parent import die_with, watch
from dnc_serve.handler.torchserve.worker_config import own_run_folder, worker_config

if TYPE_CHECKING:
    from dnc_serve.handler.server import DncServer

logger = logging.getLogger(__name__)

# Of TorchServe's patience, this much is kept for the way back.
TIMEOUT_RESERVE_S = 5.0


class Worker:
    """What TorchServe calls: `initialize` once, then `handle` for each batch."""

    def __init__(self) -> None:
        self._server: DncServer | None = None
        self._timeout_s = 0.0
        self._control: ControlLine | None = None
        self._leaving = threading.Lock()

    def initialize(self, context: Any) -> None:
        """Opens the endpoints; raises what went wrong, after telling `dnc serve`."""
        parent = os.getppid()
        die_with(parent)
        watch(parent, self._end)
        run_folder = own_run_folder()
        if run_folder is not None:
            self._control = ControlLine(run_folder)
            self._control.listen(self._drain, self._end)
        try:
            self._start(context, run_folder)
        except Exception as exc:
            if self._control is not None:
                self._control.failed(_cause(exc))
            raise

    def _start(self, context: Any, run_folder: Path | None) -> None:
        config = worker_config(run_folder)
        configure_logs(config.log_level, sys.stdout)  # TorchServe passes what a worker prints on to its own log
        # Here, not above: torch takes seconds, and a failing import is a cause to be told like any other.
        from dnc_serve.handler.server import DncServer

        self._timeout_s = config.response_timeout_s - min(TIMEOUT_RESERVE_S, config.response_timeout_s / 2)
        properties = context.system_properties
        device = assigned_device(config.device, properties.get("gpu_id"))
        server = DncServer(config, Path(properties["model_dir"]), device)
        addresses = server.start()
        self._server = server
        logger.info("serving", extra={"grpc": addresses.grpc, "metrics": addresses.metrics, "device": device})
        if self._control is not None:
            self._control.ready(addresses.grpc, addresses.metrics)

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One answer for each row; never raises."""
        return answer(self._call, rows, context)

    def _call(self, calls: list[Any]) -> list[Any]:
        if self._server is None:
            gone = ServeError("DRAINING", "the server is leaving", retry_after_s=1.0)
            from dnc_serve.handler.api.status import status_of
            from dnc_serve.proto.dnc.v1 import dnc_pb2

            return [dnc_pb2.CallResult(status=status_of(gone)) for _ in calls]
        return self._server.call(calls, self._timeout_s)

    def _drain(self, grace_s: float) -> None:
        """Ends all sessions in good order and says so; the process stays, or TorchServe would start another."""
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


def assigned_device(wanted: str, gpu_id: int | None) -> str:
    """The device that TorchServe gave the worker, unless the configuration names one."""
    if wanted != "auto":
        return wanted
    if gpu_id is None or gpu_id < 0:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        logger.warning("TorchServe assigned GPU %d, but this torch can't use it; serving on the CPU", gpu_id)
        return "cpu"
    return f"cuda:{gpu_id}"


def _cause(error: BaseException) -> str:
    """The error in one line; the class is named where the message alone would say too little."""
    text = " ".join(str(error).split())
    expected = isinstance(error, OSError | ServeError) or type(error).__module__.startswith("dnc_serve")
    return text if text and expected else f"{type(error).__name__}: {text}"


_worker = Worker()


def handle(rows: list[dict[str, Any]] | None, context: Any) -> list[bytes]:
    """What the shim in the archive calls: without rows to start the worker, then with each batch."""
    if rows is None:
        _worker.initialize(context)
        return []
    return _worker.handle(rows, context)
