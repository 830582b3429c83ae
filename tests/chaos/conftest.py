"""A small model for servers that are killed."""

from pathlib import Path

import pytest
import torch

from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.model.artifact import Artifact, load_artifact
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from tests.chaos.truth import INPUT_SIZE, OUTPUT_SIZE


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
def runner(artifact: Artifact, artifact_folder: Path) -> ModelRunner:
    """What a server of this model chooses."""
    return choose_runner(artifact, "cpu", "auto", [])
