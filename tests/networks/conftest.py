"""What the servers of a network serve."""

from pathlib import Path

import pytest

from tests.handler.harness import export_small


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("artifact"))
