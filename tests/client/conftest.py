"""A small model, and real servers of it: in this process, or in one of their own that can be killed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dnc_serve.client import Client
from dnc_serve.client.arrays import Float32
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.server import DncServer
from tests.handler.harness import export_small
from tests.server_process import ServerProcess


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("small-artifact"))


@pytest.fixture(scope="session")
def address(small_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that nobody stops."""
    config = ServeConfig(state_dir=tmp_path_factory.mktemp("state"), port=0, metrics_port=0, max_chunk_timesteps=64)
    server = DncServer(config, [small_artifact], "cpu")
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
