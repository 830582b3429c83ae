"""A server in a process of its own, that can be killed."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.ports import own_port
from tests.waiting import frozen

REPOSITORY = Path(__file__).parents[1]
STOP_TIMEOUT_S = 120.0


class ServerProcess:
    """Started again, it comes back at the same port and with the same state folder."""

    module = "tests.serving"

    def __init__(self, artifact: Path, state_dir: Path, **settings: object) -> None:
        port = own_port()
        self.address = f"127.0.0.1:{port}"
        self.state_dir = state_dir
        self._command = [sys.executable, "-m", self.module, str(artifact), str(state_dir), str(port)]
        self._command += [f"{name}={value}" for name, value in settings.items()]
        self._process: subprocess.Popen[str] | None = None

    def launch(self) -> None:
        """Begins to start."""
        self._process = subprocess.Popen(self._command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)

    def await_ready(self) -> None:
        """Returns when it serves."""
        assert self._process is not None and self._process.stdout is not None
        # Ends with the process if the start fails.
        assert self._process.stdout.readline().strip() == self.address, "the server didn't start"

    def start(self) -> None:
        self.launch()
        self.await_ready()

    def kill(self) -> None:
        self._end(lambda process: process.kill())

    def terminate(self) -> None:
        """SIGTERM: it drains."""
        self._end(lambda process: process.terminate())

    def frozen(self) -> AbstractContextManager[None]:
        assert self._process is not None
        return frozen(self._process.pid)

    def _end(self, how: Callable[["subprocess.Popen[str]"], None]) -> None:
        if self._process is None:
            return
        how(self._process)
        self._process.wait(STOP_TIMEOUT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
