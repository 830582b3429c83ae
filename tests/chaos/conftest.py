"""A small model for servers that are killed, and how much of that is wanted."""

from pathlib import Path

import pytest
import torch

from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import Artifact, export, load_artifact
from tests.chaos.truth import INPUT_SIZE, OUTPUT_SIZE

THOROUGH_KILLS = 50
# On a busy machine a killed TorchServe takes some seconds to serve again.
SECONDS_A_KILL = 60


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    limit = 300 + SECONDS_A_KILL * config.getoption("--chaos-kills")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            item.add_marker(pytest.mark.timeout(limit))


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How often each server is killed."""
    return int(request.config.getoption("--chaos-kills"))


@pytest.fixture(scope="session")
def thorough(kills: int) -> bool:
    """Whether this is the long run: every byte, every session."""
    return kills >= THOROUGH_KILLS


@pytest.fixture(scope="session")
def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos-artifact")
    torch.manual_seed(5)
    dnc = DNC(INPUT_SIZE, 16, num_hidden_layers=1, nr_cells=10, cell_size=6, read_heads=2, output_size=OUTPUT_SIZE)
    export(dnc, folder)
    return folder


@pytest.fixture(scope="session")
def artifact(artifact_folder: Path) -> Artifact:
    return load_artifact(artifact_folder)


@pytest.fixture(scope="session")
def tiles(artifact: Artifact) -> TileRunner:
    return TileRunner(artifact, "cpu")
