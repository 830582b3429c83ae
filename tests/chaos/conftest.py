"""A small model for servers that are killed."""

from pathlib import Path

import pytest

from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.model.artifact import Artifact, load_artifact
from tests.handler.harness import export_small


@pytest.fixture(scope="session")
def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="session")
def artifact(artifact_folder: Path) -> Artifact:
    return load_artifact(artifact_folder)


@pytest.fixture(scope="session")
def runner(artifact: Artifact, artifact_folder: Path) -> ModelRunner:
    """What a server of this model chooses."""
    return choose_runner(artifact, "cpu", "auto", [])
