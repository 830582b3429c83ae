"""Models and real servers for the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dnc_serve.model.weights import save_weights
from tests.end_to_end.servers import Server, running
from tests.handler.harness import export_small, small_dnc


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: weights and config."""
    folder = tmp_path_factory.mktemp("run")
    save_weights(small_dnc(), folder)
    return folder


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the same model."""
    return export_small(tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="session", params=["torchserve", "plain"])
def runtime(request: pytest.FixtureRequest) -> str:
    """What starts the worker: a test that asks for it, or for `server`, runs with each."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def server(runtime: str, small_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all tests share; they leave it running."""
    with running(small_artifact, tmp_path_factory.mktemp("server"), "--runtime", runtime) as server:
        yield server
