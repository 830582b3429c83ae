"""Models and real servers for the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from dnc_serve.model.weights import save_weights
from tests.end_to_end.servers import Server, running

INPUT_SIZE, OUTPUT_SIZE = 5, 4


def small_dnc() -> DNC:
    """A random model of the sizes above, always the same."""
    torch.manual_seed(11)
    return DNC(INPUT_SIZE, 16, num_hidden_layers=1, nr_cells=10, cell_size=6, read_heads=2, output_size=OUTPUT_SIZE)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: weights and config."""
    folder = tmp_path_factory.mktemp("run")
    save_weights(small_dnc(), folder)
    return folder


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the same model."""
    folder = tmp_path_factory.mktemp("artifact")
    export(small_dnc(), folder)
    return folder


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
