"""The worker that TorchServe starts: it also answers the calls that TorchServe hands over.

TorchServe calls `handle` in the process's only loop: an exception there fails a whole batch, and an answer that takes
longer than `responseTimeout` gets the worker killed, with all that it holds. So every row is answered, and in time.
"""

import logging
import os
from pathlib import Path
from typing import Any

from dnc_serve.handler.api.torchserve_calls import answer
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.runtime.artifact import unpacked_artifacts
from dnc_serve.handler.runtime.worker import Worker

logger = logging.getLogger(__name__)

# Of TorchServe's patience, this much is kept for the way back.
TIMEOUT_RESERVE_S = 5.0


class TorchServeWorker(Worker):
    """What TorchServe calls: `open` once, then `handle` for each batch. Drained it stays, or TorchServe would start
    another."""

    def __init__(self) -> None:
        super().__init__()
        self._timeout_s = 0.0

    def open(self, context: Any) -> None:
        """Opens the endpoints; raises what went wrong, after telling `dnc serve`."""
        properties = context.system_properties
        gpu_id = properties.get("gpu_id")
        config = self.initialize(
            os.getppid(),
            unpacked_artifacts(Path(properties["model_dir"])),
            lambda wanted: assigned_device(wanted, gpu_id),
        )
        self._timeout_s = config.response_timeout_s - min(TIMEOUT_RESERVE_S, config.response_timeout_s / 2)

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


_worker = TorchServeWorker()


def handle(rows: list[dict[str, Any]] | None, context: Any) -> list[bytes]:
    """What the shim in the archive calls: without rows to start the worker, then with each batch."""
    if rows is None:
        _worker.open(context)
        return []
    return _worker.handle(rows, context)
