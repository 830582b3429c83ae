"""A small artifact, compiled once."""

from pathlib import Path

import pytest

from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.model.artifact import Artifact, load_artifact
from dnc_serve.model.kernel import user_cache
from tests.handler.harness import export_small


@pytest.fixture(scope="session")
def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="session")
def artifact(artifact_folder: Path) -> Artifact:
    return load_artifact(artifact_folder)


@pytest.fixture(scope="session")
def tiles(artifact: Artifact) -> TileRunner:
    return TileRunner(artifact, "cpu")


@pytest.fixture(scope="session")
def kernel_cache(artifact_folder: Path) -> Path:
    """A folder with the artifact's row kernel."""
    return user_cache()


@pytest.fixture(scope="session")
def row_runner(artifact: Artifact, artifact_folder: Path, kernel_cache: Path) -> ModelRunner:
    return choose_runner(artifact, "cpu", "kernel", [kernel_cache])
