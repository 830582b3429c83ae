"""k6, a load generator that has the contract from the server's reflection, runs the checked-in script."""

import json
import subprocess
from pathlib import Path

from dnc_serve.client import Client
from tests.programs import program
from tests.server_process import REPOSITORY, ServerProcess

SCRIPT = REPOSITORY / "deploy" / "k6" / "stream.js"
SESSIONS, CHUNKS = 6, 20


def test_its_streams_and_sequences_are_answered(server: ServerProcess, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    command = [program("k6"), "run", "--no-usage-report", "--quiet", "--summary-export", str(summary)]
    command += ["-e", f"TARGET={server.address}", "-e", f"CHUNKS={CHUNKS}", "-e", "TIMESTEPS=2"]
    command += ["--vus", "3", "--iterations", str(SESSIONS), str(SCRIPT)]
    ran = subprocess.run(command, capture_output=True, text=True, env={"HOME": str(tmp_path)})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    metrics = json.loads(summary.read_text())["metrics"]
    assert metrics["dnc_step_ms"]["count"] == metrics["dnc_infer_ms"]["count"] == SESSIONS * CHUNKS
    assert metrics["checks"]["fails"] == 0
    with Client(server.address) as client:
        assert list(client.sessions("k6-")) == []


def test_it_fails_where_it_is_not_answered(tmp_path: Path) -> None:
    command = [program("k6"), "run", "--no-usage-report", "--quiet", "-e", "TARGET=127.0.0.1:1", str(SCRIPT)]
    ran = subprocess.run(command, capture_output=True, text=True, env={"HOME": str(tmp_path)})
    assert ran.returncode == 99, ran.stdout + ran.stderr  # a threshold was crossed
