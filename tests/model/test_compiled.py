"""What is around the compiler; compiled code itself is tried in tests/handler/engine/test_tiles.py."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnc_serve.model.compiled import (
    FORMAT,
    MANIFEST_FILE,
    CompiledError,
    _intact,
    _put,
    _sha256,
    baddbmm_of_single_rows,
    compile_artifact,
    compiled_key,
    load_compiled,
    sort_by_rank,
)
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export, load_artifact


@pytest.fixture
def artifact_folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    export(DNC(3, 4, num_hidden_layers=1, nr_cells=3, cell_size=2, read_heads=1), tmp_path / "artifact")
    return tmp_path / "artifact"


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 0.25, 1.0, 1 - 2**-24]), min_size=6, max_size=6), min_size=1),
    st.booleans(),
)
def test_ranking_is_a_stable_sort(rows: list[list[float]], descending: bool) -> None:
    values = torch.tensor(rows)
    for dim in (1, 0):
        expected = torch.sort(values, dim=dim, descending=descending, stable=True)
        ordered, order = sort_by_rank(values, stable=True, dim=dim, descending=descending)
        assert torch.equal(ordered, expected.values)
        assert torch.equal(order, expected.indices)


def test_products_of_single_rows_are_baddbmm() -> None:
    added, left, right = torch.randn(5, 1, 4), torch.randn(5, 1, 7), torch.randn(5, 7, 4)
    result = baddbmm_of_single_rows(added, left, right)
    assert torch.allclose(result, torch.baddbmm(added, left, right), atol=1e-6)
    assert baddbmm_of_single_rows(added, torch.randn(5, 2, 7), right) is NotImplemented


def test_the_folder_is_named_after_all_that_the_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    key = compiled_key("a" * 64)
    assert key == compiled_key("a" * 64)
    assert key != compiled_key("b" * 64)
    monkeypatch.setattr("dnc_serve.model.compiled.processor", lambda device: "another")
    elsewhere = compiled_key("a" * 64)
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert len({key, elsewhere, compiled_key("a" * 64)}) == 3


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
        deadline = time.monotonic() + 30
        while not list(cache.glob(".*/scratch")):
            assert process.poll() is None, "it ended before it was stopped"
            assert time.monotonic() < deadline, "nothing was compiled"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(10) == 1
        assert list(cache.iterdir()) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_single_ticks_can_not_be_left_out(artifact_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ticks are \(8,\)"):
        compile_artifact(artifact_folder, tmp_path / "cache", (8,), (8,))


def test_of_many_that_finish_at_once_one_complete_folder_remains(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    _write(folder, b"damaged, as a power loss may leave it")
    (folder / "a.pt2").write_bytes(b"")
    assert not _intact(folder)
    candidates = [tmp_path / f".key.{number}" for number in range(8)]
    for number, candidate in enumerate(candidates):
        _write(candidate, b"%d" % number)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda candidate: _put(candidate, folder), candidates))
    assert _intact(folder)
    assert (folder / "a.pt2").read_bytes() in [b"%d" % number for number in range(8)]


def _write(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / "a.pt2").write_bytes(content)
    packages = [{"rows": 8, "ticks": 1, "file": "a.pt2", "sha256": _sha256(folder / "a.pt2")}]
    (folder / MANIFEST_FILE).write_text(json.dumps({"format": FORMAT, "key": "key", "packages": packages}))
