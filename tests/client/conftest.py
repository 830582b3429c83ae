"""A small model, and real servers of it: in this process, or in one of their own that can be killed."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dnc_serve.client import Client
from dnc_serve.client.arrays import Float32
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.server import DncServer
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export

REPOSITORY = Path(__file__).parents[2]
INPUT_SIZE, OUTPUT_SIZE = 5, 4
STOP_SECONDS = 30


def random_inputs(seed: int, timesteps: int) -> Float32:
    """Bits as ±1, [T, I]."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), (timesteps, INPUT_SIZE))


class ServerProcess:
    """A server that can be killed and started again at the same port, with the same state folder."""

    def __init__(self, artifact: Path, state_dir: Path, **settings: object) -> None:
        self.address = "127.0.0.1:0"
        self.state_dir = state_dir
        self._artifact = artifact
        self._settings = [f"{name}={value}" for name, value in settings.items()]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-m", "tests.client.serving", str(self._artifact), str(self.state_dir), port]
        self._process = subprocess.Popen([*command, *self._settings], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the server didn't start"
        return self.address

    def kill(self) -> None:
        self._end(lambda process: process.kill())

    def terminate(self) -> None:
        self._end(lambda process: process.terminate())

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, how: Callable[["subprocess.Popen[str]"], None]) -> None:
        if self._process is None:
            return
        how(self._process)
        self._process.wait(STOP_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small-artifact")
    torch.manual_seed(7)
    export(DNC(INPUT_SIZE, 16, num_hidden_layers=1, nr_cells=8, cell_size=6, output_size=OUTPUT_SIZE), folder)
    return folder


@pytest.fixture(scope="session")
def address(small_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that nobody stops."""
    config = ServeConfig(state_dir=tmp_path_factory.mktemp("state"), port=0, metrics_port=0, max_chunk_timesteps=64)
    server = DncServer(config, small_artifact, "cpu")
    yield server.start().grpc
    server.stop()


@pytest.fixture
def server_process(small_artifact: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server to be killed, started."""
    process = ServerProcess(small_artifact, tmp_path / "state")
    process.start()
    yield process
    process.kill()


@pytest.fixture(scope="session")
def uninterrupted(address: str) -> Callable[[Float32], Float32]:
    """What a session answers that nothing happens to."""

    def outputs(inputs: Float32) -> Float32:
        with Client(address) as client, client.session() as session:
            answered = session.step(inputs)
            session.delete()
        return answered

    return outputs
