"""The metrics of a server, wherever its process comes from."""

import os
import subprocess
import sys

import pytest

ASKED = """
from dnc_serve.handler.metrics import Metrics
metrics = Metrics()
metrics.sessions.labels("slot").set_function(lambda: 42)
from prometheus_client import generate_latest
print(generate_latest(metrics.registry).decode())
"""


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_a_folder_for_several_processes_is_ignored(name: str) -> None:
    """Also in a worker of somebody's own TorchServe, whose environment is theirs."""
    environment = {**os.environ, name: "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=True, env=environment)
    assert 'dnc_sessions{tier="slot"} 42.0' in done.stdout
