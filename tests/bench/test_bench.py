"""`dnc bench` on a real server. What it measures is not judged here: this machine may be busy."""

import json
import subprocess
import sys

from dnc_serve.client.cli.bench import table

ROWS = (
    "lone stream",
    "64 streams",
    "64 streams, chunks of 16",
    "one stream of 64 sessions",
    "one stream of 64 sessions, chunks of 16",
)


def test_the_command_measures_a_server_an_echo_the_bare_model_and_torchserves_door() -> None:
    command = [sys.executable, "-m", "dnc_serve.client.cli", "bench", "--quick", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr

    report = json.loads(ended.stdout)
    assert set(report["rows"]) == {
        *ROWS,
        *(f"echo: {row}" for row in ROWS),
        "lone stream, client library",
        "TorchServe's door, 1 caller",
        "TorchServe's door, 64 callers",
    }
    for row in report["rows"].values():
        assert row["calls"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert report["bare_timesteps_per_s"] > 0
    assert len(report["ratios"]) == 4
    assert all(ratio["value"] > 0 for ratio in report["ratios"])
    printed = table(report)
    assert all(row in printed for row in report["rows"])
