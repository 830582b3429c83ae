"""A small artifact, compiled once."""

import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.model.artifact import Artifact, load_artifact
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from dnc_serve.model.kernel import compile_code, request
from tests.handler.harness import INPUT_SIZE, OUTPUT_SIZE


@pytest.fixture(scope="session")
def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with two layers, two heads each, and one shared memory."""
    folder = tmp_path_factory.mktemp("artifact")
    torch.manual_seed(7)
    dnc = DNC(
        INPUT_SIZE, 24, num_layers=2, num_hidden_layers=1, nr_cells=12, cell_size=6, read_heads=2,
        output_size=OUTPUT_SIZE,
    )  # fmt: skip
    export(dnc, folder)
    return folder


@pytest.fixture(scope="session")
def artifact(artifact_folder: Path) -> Artifact:
    return load_artifact(artifact_folder)


@pytest.fixture(scope="session")
def tiles(artifact: Artifact) -> TileRunner:
    return TileRunner(artifact, "cpu")


@pytest.fixture(scope="session")
def kernel_cache(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifact's row kernel."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # compiled once for all processes
    with FileLock(shared / "kernels.lock"):
        if not (shared / "kernels").exists():
            compile_code([request(artifact.config)], shared / "kernels")
    return shared / "kernels"


@pytest.fixture(scope="session")
def row_runner(artifact: Artifact, artifact_folder: Path, kernel_cache: Path) -> ModelRunner:
    return choose_runner(artifact, "cpu", "kernel", [kernel_cache])
