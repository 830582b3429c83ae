"""The whole of a server, processes and all: `dnc serve`, TorchServe's Java and the worker, killed in part or whole."""

import contextlib
import os
import random
import subprocess
from pathlib import Path
from typing import Literal

import psutil

from dnc_serve.client.cli.child_server import serve_command
from tests.end_to_end.servers import Server
from tests.folders import temp_folder
from tests.ports import own_port

END_TIMEOUT_S = 60.0
# Flags of the addresses in the `ready` line, by their names there.
PORT_FLAGS = {
    "grpc": "--port",
    "metrics": "--metrics-port",
    "http": "--torchserve-http-port",
    "torchserve": "--torchserve-grpc-port",
    "management": "--torchserve-management-port",
}
Victim = Literal["worker", "java", "tree"]


class Tree:
    """Started again, it comes back at the same ports and with the same state folder."""

    def __init__(self, model: Path, folder: Path, *flags: str) -> None:
        self._model, self._folder, self._flags = model, folder, flags
        self._process: subprocess.Popen[str] | None = None
        self.addresses: dict[str, str] = {}
        self.victims: tuple[Victim, ...] = ("worker", "tree") if "plain" in flags else ("worker", "java", "tree")
        self._ports = [text for flag in PORT_FLAGS.values() for text in (flag, str(own_port()))]
        self.starts = 0

    def launch(self) -> None:
        """Begins to start."""
        with (self._folder / "stderr").open("a") as stderr:
            self._process = subprocess.Popen(
                serve_command(self._model, self._folder / "state", *self._flags, *self._ports),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "TMPDIR": str(temp_folder(self._folder))},
            )
        self.starts += 1

    def await_ready(self) -> None:
        """Returns when it serves."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()  # ends with the process if the start fails
        assert line.startswith("ready "), (line, (self._folder / "stderr").read_text()[-4000:])
        self.addresses = dict(part.split("=", 1) for part in line.split()[1:])

    def start(self) -> None:
        self.launch()
        self.await_ready()

    def kill(self, victim: Victim, chance: random.Random) -> None:
        """kill -9 of one process, or of all of them in a random order, which are then started again."""
        assert self._process is not None
        if victim == "tree":
            self.kill_all(chance)
            self.start()
            return
        with contextlib.suppress(psutil.NoSuchProcess, StopIteration):  # it may be on its way back from another end
            server = Server(self._process, self.addresses, self._folder)
            (server.worker() if victim == "worker" else server.java()).kill()

    def start_if_ended(self) -> None:
        """`dnc serve` gives up when TorchServe ends many times in a row; whoever runs it starts it again."""
        assert self._process is not None
        if self._process.poll() is not None:
            self.kill_all()
            self.start()

    def kill_all(self, chance: random.Random | None = None) -> None:
        """Leaves nothing running."""
        if self._process is None:
            return
        processes: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            processes = [root, *root.children(recursive=True)]
        if chance is not None:
            chance.shuffle(processes)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(END_TIMEOUT_S)
        _, alive = psutil.wait_procs(processes, END_TIMEOUT_S)
        assert not alive, alive
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
