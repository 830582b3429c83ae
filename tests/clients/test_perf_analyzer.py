"""NVIDIA's load generator, which nobody here wrote, against a real server."""

import csv
import os
import subprocess
from pathlib import Path

import pytest

from bench.peers.setup import cache_folder, perf_analyzer
from dnc_serve.client import Client
from tests.handler.harness import INPUT_SIZE
from tests.programs import COMPLETE_VARIABLE
from tests.server_process import ServerProcess

REQUESTS = 200


@pytest.fixture(scope="session")
def command() -> list[str]:
    """Prepared in the cache of `bench`, by the first comparison or where nothing may be left out."""
    if not (cache_folder() / "perf-analyzer").is_dir() and not os.environ.get(COMPLETE_VARIABLE):
        pytest.skip("perf_analyzer is not in the cache: `python -m bench.compare` prepares it")
    return perf_analyzer(cache_folder())


@pytest.mark.parametrize("sequences", [1, 8])
@pytest.mark.parametrize("how", [[], ["--streaming"]])
def test_its_sequences_are_served(
    command: list[str], server: ServerProcess, tmp_path: Path, sequences: int, how: list[str]
) -> None:
    report = tmp_path / "report.csv"
    # As many requests as are said, in one window: nothing hangs on how stable a busy machine measures.
    asked = ["-m", "copy", "-i", "grpc", "-u", server.address, "--shape", f"INPUT:1,{INPUT_SIZE}", *how]
    asked += ["--concurrency-range", str(sequences), "--sequence-length", "20", "--request-count", str(REQUESTS)]
    with Client(server.address) as client:
        before = {session.id for session in client.sessions()}  # other tests'
    ran = subprocess.run([*command, *asked, "-f", str(report)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (row,) = csv.DictReader(report.read_text().splitlines())
    assert float(row["Inferences/Second"]) > 0
    with Client(server.address) as client:  # what it ended is gone, and what it left behind stands where it stood
        left = [session.position for session in client.sessions() if session.id not in before]
        assert all(0 < position <= 20 for position in left)
