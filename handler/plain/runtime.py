"""The worker as the child of `dnc serve`: its command and its environment."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.causes import MODEL_LOG
from dnc_serve.handler.runtime.child import Child, Line, OnEnd, OnLine, own_record
from dnc_serve.handler.runtime.environment import child_environment
from dnc_serve.handler.runtime.worker_config import RUN_FOLDER_VARIABLE

MODULE = "dnc_serve.handler.plain.worker"


class PlainRuntime:
    """Nothing between `dnc serve` and the worker: no Java, no ports but the worker's own."""

    orphans = False
    port_settings: tuple[str, ...] = ()
    worker_patience_s = 900.0  # loading a model, however large
    # A day at the longest delay between two, as long as TorchServe would go on: a store that is down may come back.
    restarts = 24 * 3600 // 10

    def __init__(self, artifacts: Sequence[Path], run_folder: Path, name: str = "the worker") -> None:
        self.name = name
        self._artifacts = artifacts
        self._run_folder = run_folder

    def start(self, config: ServeConfig, on_line: OnLine, on_end: OnEnd) -> Child:
        """The worker, which reads its configuration from the run folder."""
        folder = str(self._run_folder)
        own = {"TMPDIR": folder, "PYTHONUNBUFFERED": "1", RUN_FOLDER_VARIABLE: folder}
        command = [sys.executable, "-m", MODULE, str(os.getpid()), *map(str, self._artifacts)]
        return Child(command, self._run_folder, child_environment(own), _parse, on_line, on_end)

    def addresses(self, config: ServeConfig) -> dict[str, str]:
        """None: the worker's own are all."""
        return {}

    def load_failed(self, line: Line) -> bool:
        """Never: a worker that can't load the model ends."""
        return False

    def port_was_taken(self, cause: str) -> bool:
        """Never: the worker itself chooses a free port, and holds it from then on."""
        return False


def _parse(text: str) -> Line:
    return own_record(text) or {"level": "debug", "logger": MODEL_LOG, "message": text}
