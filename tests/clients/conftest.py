"""A server in a process of its own, and clients in others."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dnc_serve.handler.arrays import Float32
from tests.clients.sequences import INPUTS, NUMBERS, answered
from tests.handler.conftest import artifact_folder  # noqa: F401
from tests.ports import own_port
from tests.server_process import REPOSITORY, ServerProcess

HTTP_PORT = own_port()
Answers = list[dict[str, Any]]


class ForeignClient:
    """A program that answers each line of requests by a line of answers."""

    def __init__(self, *command: str) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes)

    def ask(self, *requests: dict[str, Any]) -> Answers:
        """Sends them together, where the client can."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        answers: Answers = json.loads(self._process.stdout.readline())
        return answers

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.terminate()
        self._process.wait()


def triton_client(kind: str, address: str) -> ForeignClient:
    """One of the kinds that `triton_client.py` lists."""
    return ForeignClient(sys.executable, "-m", "tests.clients.triton_client", kind, address, "copy")


@pytest.fixture(scope="session")
def server(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:  # noqa: F811
    """One for all tests, which may kill it and start it again, and name sequences of their own."""
    server = ServerProcess(artifact_folder, tmp_path_factory.mktemp("state"), http_port=HTTP_PORT)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def triton(server: ServerProcess) -> Iterator[Callable[[str], ForeignClient]]:
    """Makes clients of Triton."""
    with ExitStack() as stack:

        def make(kind: str) -> ForeignClient:
            address = f"127.0.0.1:{HTTP_PORT}" if kind == "http" else server.address
            client = triton_client(kind, address)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture(scope="session")
def expected(server: ServerProcess) -> Float32:
    """What the contract's endpoint gives for the whole sequence."""
    return answered(server.address, INPUTS)


@pytest.fixture
def sequence_id() -> int:
    return next(NUMBERS)
