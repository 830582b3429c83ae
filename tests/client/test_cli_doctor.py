"""`dnc doctor`, run as a command."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from dnc_serve.handler.config import PORTS


def doctor(*flags: str, **env: str) -> "subprocess.CompletedProcess[str]":
    free = {f"DNC_{name.upper()}": "0" for name in PORTS}
    return subprocess.run(
        [sys.executable, "-m", "dnc_serve.client.cli", "doctor", *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **free, **env},
    )


def test_a_healthy_machine(small_artifact: Path, tmp_path: Path) -> None:
    done = doctor("--model", str(small_artifact), "--state-dir", str(tmp_path), "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert list(findings) == [
        "python", "torch", "settings", "torchserve", "PyYAML", "java", "gpu", "temp folder", "state", "store", "model",
        "code",
    ]  # fmt: skip
    assert {finding["status"] for finding in findings.values()} == {"ok"}
    assert "from float32[5] to float32[4], a session takes" in findings["model"]["found"]

    plain = doctor("--model", str(small_artifact), "--state-dir", str(tmp_path), "--json", "--runtime", "plain")
    assert plain.returncode == 0, plain.stdout
    asked = [finding["what"] for finding in json.loads(plain.stdout)]
    assert asked == [what for what in findings if what not in ("torchserve", "PyYAML", "java")]


def test_what_fails_comes_with_a_hint(small_artifact: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in small_artifact.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.pt").write_bytes(b"damaged")
    (tmp_path / "file").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = doctor("--model", str(broken), "--state-dir", str(tmp_path / "file" / "x"), DNC_PORT=port)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    failures = [index for index, line in enumerate(lines) if line.startswith("fail")]
    assert [lines[index].split()[1] for index in failures] == ["state", "model", "port"]
    assert all(lines[index + 1].strip().startswith("→ ") for index in failures)
    assert f"{port} is taken (port)" in done.stdout


def test_a_wrong_setting_is_a_finding() -> None:
    done = doctor(DNC_SLOTS="0")
    assert done.returncode == 1
    assert "slots is '0' (DNC_SLOTS); expected at least 1" in done.stdout


def test_a_misspelt_variable_is_a_warning(small_artifact: Path, tmp_path: Path) -> None:
    done = doctor("--model", str(small_artifact), "--state-dir", str(tmp_path), "--json", DNC_SLOTZ="1")
    assert done.returncode == 0
    [warning] = [finding for finding in json.loads(done.stdout) if finding["status"] == "warn"]
    assert warning["found"] == "DNC_SLOTZ in the environment is no setting; did you mean DNC_SLOTS?"


def test_a_missing_package_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "pydantic_settings.py").write_text("raise ImportError('No module named pydantic_settings')\n")
    done = doctor(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "pip install 'dnc-serve[serve]'" in done.stdout


def test_nobody_serves() -> None:
    done = doctor("--serving", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stdout.startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED"))
