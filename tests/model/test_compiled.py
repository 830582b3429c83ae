"""What is around the compiler; compiled code itself is tried in tests/handler/engine/test_tiles.py."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dnc_serve.model.compiled import compile_artifact, load_compiled
from dnc_serve.model.compiled_cache import CompiledError
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export, load_artifact
from tests.waiting import wait_until


@pytest.fixture
def artifact_folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    export(DNC(3, 4, num_hidden_layers=1, nr_cells=3, cell_size=2, read_heads=1), tmp_path / "artifact")
    return tmp_path / "artifact"


def test_without_a_compiler_nothing_stays_behind(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.raises(CompiledError, match="install g\\+\\+"):
        compile_artifact(artifact_folder, tmp_path / "cache", (8,), (1,))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(CompiledError, match="has none of this model"):
        load_compiled(load_artifact(artifact_folder), tmp_path / "cache")


def test_a_compilation_that_is_stopped_leaves_nothing_behind(artifact_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", "from dnc_serve.model.compiled import main; main()"]
    # A group of its own, which is stopped as one: so `dnc serve` does.
    process = subprocess.Popen([*command, str(artifact_folder), str(cache), "cpu"], start_new_session=True)
    try:
        wait_until(lambda: list(cache.glob(".*/scratch")) or process.poll() is not None, "it compiles")
        assert process.poll() is None, "it ended before it was stopped"
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait() == 1
        assert list(cache.iterdir()) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_single_ticks_can_not_be_left_out(artifact_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ticks are \(8,\)"):
        compile_artifact(artifact_folder, tmp_path / "cache", (8,), (8,))
