"""A small artifact, compiled once."""

import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from dnc_serve.handler.engine.tiles import Tiles, choose_tiles
from dnc_serve.model.compiled import compile_artifact
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import Artifact, export, load_artifact
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
def tiles(artifact: Artifact) -> Tiles:
    return Tiles(artifact, "cpu")


@pytest.fixture(scope="session")
def compiled_cache(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the artifact compiled for this host: for 8 rows, calls of one and of four ticks."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # it takes long: once for all processes
    with FileLock(shared / "compiled.lock"):
        if not (shared / "compiled").exists():
            compile_artifact(artifact_folder, shared / "compiled", tile_sizes=(8,), ticks=(1, 4))
    return shared / "compiled"


@pytest.fixture(scope="session")
def compiled_tiles(artifact: Artifact, compiled_cache: Path) -> Tiles:
    return choose_tiles(artifact, "cpu", compiled_cache)
