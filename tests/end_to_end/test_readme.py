"""What the README says can be pasted, pasted: against a real server with the bundled model."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.documents import block, run_shell
from tests.end_to_end.servers import Server, running

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running("copy", tmp_path_factory.mktemp("bundled")) as server:
        yield server


def test_the_client(bundled: Server) -> None:
    source = block(README.name, "python", "dnc_serve.client").replace("localhost:8500", bundled.grpc)
    names: dict[str, object] = {
        "inputs": np.ones((3, 10), np.float32),
    }
    exec(source, names)
    assert np.asarray(names["outputs"]).shape == (3, 8)
    assert "link_matrix" in names["memory"]  # type: ignore[operator]


def test_curl(bundled: Server, tmp_path: Path) -> None:
    script = block("docs/reference.md", "sh", "curl").replace("localhost:8080", bundled.addresses["http"])
    answers = run_shell(script, tmp_path)
    assert '"created": true' in answers or '"created":true' in answers
    assert answers.count('"status"') == 0, answers
    assert "outputs" in answers


def test_the_commands(bundled: Server, tmp_path: Path) -> None:
    said = run_shell(block(README.name, "sh", "dnc sessions"), tmp_path, DNC_TARGET=bundled.grpc)
    assert "[N, W] = [64, 16]" in said
    assert "session copy-of-s at position" in said
    run_shell("dnc dump s --plot memory.png", tmp_path, DNC_TARGET=bundled.grpc)
    assert (tmp_path / "memory.png").stat().st_size > 10_000


def test_training_and_export(tmp_path: Path) -> None:
    script = block(README.name, "sh", "dnc train").replace("dnc train copy", "dnc train copy --iterations 3")
    lines = [line for line in script.splitlines() if not line.startswith("dnc serve")]
    run_shell("\n".join(lines), tmp_path)
    assert (tmp_path / "artifact" / "model.pt").is_file()


def test_the_library() -> None:
    names: dict[str, object] = {}
    exec(block(README.name, "python", "DNC("), names)
    assert names["output"].shape == (2, 64)  # type: ignore[attr-defined]


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README.read_text()):
        assert (README.parent / target).exists(), target
