"""What the README says can be pasted, pasted: against a real server with the bundled model."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.servers import Server, running

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def block(language: str, mark: str) -> str:
    [found] = [text for text in blocks(language) if mark in text]
    return found


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running("copy", tmp_path_factory.mktemp("bundled")) as server:
        yield server


def run(script: str, folder: Path, **environment: str) -> str:
    # Whoever pastes has activated the environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert result.returncode == 0, (script, result.stdout, result.stderr)
    return result.stdout


def test_the_client(bundled: Server) -> None:
    source = block("python", "dnc_serve.client").replace("localhost:8500", bundled.grpc)
    names: dict[str, object] = {
        "inputs": np.ones((3, 10), np.float32),
        "chunks": [np.ones((2, 10), np.float32) for _ in range(3)],
    }
    exec(source, names)
    assert np.asarray(names["outputs"]).shape == (3, 8)
    assert "link_matrix" in names["memory"]  # type: ignore[operator]


def test_curl(bundled: Server, tmp_path: Path) -> None:
    script = block("sh", "curl").replace("localhost:8080", bundled.addresses["http"])
    answers = run(script, tmp_path)
    assert '"created": true' in answers or '"created":true' in answers
    assert answers.count('"status"') == 0, answers
    assert "outputs" in answers


def test_the_commands(bundled: Server, tmp_path: Path) -> None:
    said = run(block("sh", "dnc sessions"), tmp_path, DNC_TARGET=bundled.grpc)
    assert "[N, W] = [64, 16]" in said
    assert "session copy-of-s at position" in said
    run("dnc dump s --plot memory.png", tmp_path, DNC_TARGET=bundled.grpc)
    assert (tmp_path / "memory.png").stat().st_size > 10_000


def test_training_and_export(tmp_path: Path) -> None:
    script = block("sh", "dnc train").replace("dnc train copy", "dnc train copy --iterations 3")
    lines = [line for line in script.splitlines() if not line.startswith("dnc serve")]
    run("\n".join(lines), tmp_path)
    assert (tmp_path / "artifact" / "model.pt").is_file()


def test_the_library() -> None:
    import torch

    names: dict[str, object] = {"inputs": torch.zeros(2, 3, 64), "x": torch.zeros(2, 64)}
    source = block("python", "DNC(")
    before, _, step = source.rpartition("output, state = ")
    exec(before, names)
    exec("state = dnc.initial_state(2)\noutput, state = " + step, names)
    assert names["output"].shape == (2, 64)  # type: ignore[attr-defined]


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README.read_text()):
        assert (README.parent / target).exists(), target
