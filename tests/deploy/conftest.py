"""Small artifacts: the one that is served, and another model."""

from pathlib import Path

import pytest

from tests.handler.harness import export_small


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="session")
def other_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("other"), seed=8)
