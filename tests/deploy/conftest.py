"""Small artifacts, compiled once: the one that is served, and another model."""

from pathlib import Path

import pytest
import torch

from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from tests.handler.harness import INPUT_SIZE, OUTPUT_SIZE


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported(tmp_path_factory.mktemp("artifact"), seed=7)


@pytest.fixture(scope="session")
def other_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported(tmp_path_factory.mktemp("other"), seed=8)


def _exported(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    dnc = DNC(
        INPUT_SIZE, 16, num_hidden_layers=1, nr_cells=8, cell_size=4, read_heads=1, output_size=OUTPUT_SIZE
    )  # fmt: skip
    export(dnc, folder)
    return folder
