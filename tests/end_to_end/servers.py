"""A real `dnc serve` as a child process."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from dnc_serve.client.cli.child_server import serve_command
from dnc_serve.handler.runtime.worker_config import RUN_FOLDER_VARIABLE
from tests.folders import temp_folder
from tests.ports import own_port

STOP_TIMEOUT_S = 240.0
# As TorchServe starts it, and as `dnc serve` does.
WORKER = re.compile(r"model_service_worker|handler\.plain\.worker")


class Server:
    """A started server: its process, the addresses of its `ready` line by name, and its folders."""

    def __init__(self, process: "subprocess.Popen[str]", addresses: Mapping[str, str], folder: Path) -> None:
        self.process = process
        self.addresses = addresses
        self.folder = folder

    @property
    def grpc(self) -> str:
        """The streaming door, host:port."""
        return self.addresses["grpc"]

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def java(self) -> psutil.Process:
        return next(process for process in self.descendants() if process.name() == "java")

    def worker(self) -> psutil.Process:
        return next(process for process in self.descendants() if WORKER.search(" ".join(process.cmdline())))

    def worker_of(self, number: int) -> psutil.Process:
        """One of several."""
        return next(
            process
            for process in self.descendants()
            if process.status() != psutil.STATUS_ZOMBIE  # one that was killed before
            and WORKER.search(" ".join(process.cmdline()))
            and Path(process.environ()[RUN_FOLDER_VARIABLE]).name == str(number)
        )

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)


@contextmanager
def running(model: Path | str, folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server with its state in `folder/state`, and temp files in `temp_folder(folder)`; it leaves nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    # A worker that is killed comes back at these.
    ports = ("--port", str(own_port()), "--metrics-port", str(own_port()))
    with (folder / "stderr").open("a") as stderr:
        process = subprocess.Popen(
            serve_command(model, folder / "state", *ports, *flags),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "TMPDIR": str(temp_folder(folder)), **(env or {})},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # ends with the process if the start fails
        assert line.startswith("ready "), (line, (folder / "stderr").read_text())
        yield Server(process, dict(part.split("=", 1) for part in line.split()[1:]), folder)
    finally:
        if process.poll() is None:
            left = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                for one in (psutil.Process(process.pid), *left):
                    if one.is_running():
                        one.kill()
                process.wait()
                raise
        if process.stdout is not None:
            process.stdout.close()
