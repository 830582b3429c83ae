"""What steps the sessions: the row kernel, and what happens where it can't be had or isn't to be trusted."""

import logging
from pathlib import Path
from typing import Any

import pytest

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.requests import Inspect
from dnc_serve.handler.engine.runner_choice import choose_runner, prove
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.artifact import Artifact
from dnc_serve.model.kernel import KernelError, RowKernel, TickCode, compiled, request, user_cache
from dnc_serve.model.weights import WEIGHTS_FILE, read_weights

# What the engine promises, it promises whichever code steps the sessions.
from tests.handler.engine.test_engine import (  # noqa: F401
    test_64_interleaved_sessions_give_the_bits_of_each_alone,
    test_a_chunk_is_applied_once_however_often_it_comes,
    test_a_crash_can_not_be_told_from_the_bits,
    test_a_result_that_is_not_finite_changes_nothing,
    test_a_session_goes_back_in_time_as_far_as_the_journal_reaches,
    test_debug_gives_what_each_access_left,
    test_many_more_sessions_than_memory_holds_stay_right_to_the_bit,
)
from tests.handler.harness import random_inputs, running_engine

pytestmark = pytest.mark.timeout(900)  # a busy machine takes its time to compile


@pytest.fixture(scope="module")
def tiles(row_runner: ModelRunner) -> ModelRunner:
    """What the tests of the engine are given here."""
    return row_runner


@pytest.fixture(scope="module")
def portable(artifact: Artifact) -> TileRunner:
    return TileRunner(artifact, "cpu")


@pytest.fixture
def no_user_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container whose files can't be written to: root may write anywhere, but not into a file."""
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))


def test_the_kernel_serves_unless_torchscript_is_asked_for(
    artifact: Artifact, artifact_folder: Path, kernel_cache: Path, portable: TileRunner
) -> None:
    runner = choose_runner(artifact, "cpu", "auto", [kernel_cache])
    assert (runner.kind, runner.note, runner.row_counts) == ("row-kernel", "", ())
    assert runner.fingerprint != portable.fingerprint
    asked = choose_runner(artifact, "cpu", "torchscript", [kernel_cache])
    assert (asked.kind, asked.note) == ("torchscript", "the setting code says so")
    assert asked.fingerprint == portable.fingerprint


def test_what_is_not_compiled_is_compiled_once_with_a_word(
    artifact: Artifact,
    artifact_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    cache = tmp_path / "state" / "compiled"
    first = choose_runner(artifact, "cpu", "kernel", [cache])
    assert "compiled for this model: some ten seconds, once" in caplog.text
    caplog.clear()
    second = choose_runner(artifact, "cpu", "kernel", [cache])
    assert not caplog.records
    assert first.fingerprint == second.fingerprint
    assert [file.suffix for file in user_cache().iterdir()] == [".kernel"]
    assert not cache.exists()


@pytest.mark.parametrize("spoil", ["cut", "flip", "empty"])
def test_damaged_code_is_never_loaded(artifact: Artifact, kernel_cache: Path, tmp_path: Path, spoil: str) -> None:
    asked = request(artifact.config)
    good = compiled(asked, [kernel_cache])
    assert good is not None
    content = bytearray(good.read_bytes())
    match spoil:
        case "cut":
            del content[-100:]
        case "flip":
            content[len(content) // 2] ^= 1
        case "empty":
            content.clear()
    (tmp_path / good.name).write_bytes(content)
    assert compiled(asked, [tmp_path]) is None
    assert compiled(asked, [tmp_path, kernel_cache]) == good
    with pytest.raises(KernelError, match=good.name):
        TickCode(tmp_path / good.name)


def test_a_kernel_that_computes_something_else_is_refused(
    artifact: Artifact, artifact_folder: Path, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = compiled(request(artifact.config), [kernel_cache])
    assert file is not None
    weights = read_weights(artifact_folder / WEIGHTS_FILE)
    weights["output.bias"] = weights["output.bias"] + 1e-3
    kernel = RowKernel(artifact.config, weights, TickCode(file))
    with pytest.raises(KernelError, match=r"outputs differ from TorchScript's by 0.001.* after 1 ticks"):
        prove(kernel, artifact)
    monkeypatch.setattr("dnc_serve.handler.engine.runner_choice.load_kernel", lambda *_: kernel)
    runner = choose_runner(artifact, "cpu", "auto", [kernel_cache])
    assert runner.kind == "torchscript"
    assert "differ from TorchScript's" in runner.note
    with pytest.raises(ServeError, match="can't be had: its outputs differ"):
        choose_runner(artifact, "cpu", "kernel", [kernel_cache])


def test_without_numba_torchscript_serves_and_says_why(
    artifact: Artifact, artifact_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dnc_serve.model.kernel.code._versions", lambda: ("", ""))
    with caplog.at_level(logging.WARNING):
        runner = choose_runner(artifact, "cpu", "auto", [])
    assert runner.kind == "torchscript"
    assert runner.note == "numba is not installed; the extra `serve` brings it"
    assert runner.note in caplog.text


@pytest.mark.long  # compiles, as the test of what is not compiled does
def test_a_folder_that_can_not_be_written_to_is_no_hindrance(
    artifact: Artifact, artifact_folder: Path, tmp_path: Path, no_user_cache: None, caplog: pytest.LogCaptureFixture
) -> None:
    runner = choose_runner(artifact, "cpu", "kernel", [tmp_path / "a file" / "compiled"])
    assert runner.kind == "row-kernel"
    assert "each start will compile" in caplog.text


async def test_what_torchscript_computed_is_replayed_by_it(
    tiles: ModelRunner, portable: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = ServeConfig(state_dir=tmp_path, snapshot_every_timesteps=1000)
    states: list[Any] = []
    for turn, stepped_by in enumerate([portable, tiles]):
        async with running_engine(stepped_by, artifact, settings) as harness:
            session = harness.engine.table.find("s") or await harness.create("s")
            if turn:
                seen = await harness.do(session, Inspect)
                assert seen.state.tobytes() == states[0].tobytes()
                assert seen.fingerprint == portable.fingerprint
            for part in range(3):
                await harness.step(session, random_inputs(10 * turn + part, 7), reset_experience=part == 1)
            assert not session.replayed_elsewhere
            assert session.fingerprint == stepped_by.fingerprint
            states.append((await harness.do(session, Inspect)).state)
    async with running_engine(tiles, artifact, settings) as harness:
        session = harness.engine.table.find("s")
        assert session is not None
        assert (await harness.do(session, Inspect)).state.tobytes() == states[1].tobytes()
        past = await harness.engine.view_at(session, 21)
        assert past.state is not None
        assert past.state.tobytes() == states[0].tobytes()
        assert not session.replayed_elsewhere


async def test_what_is_not_at_hand_is_replaced_and_said(
    tiles: ModelRunner, portable: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = ServeConfig(state_dir=tmp_path)
    async with running_engine(tiles, artifact, settings) as harness:
        session = await harness.create("s")
        await harness.step(session, random_inputs(1, 6))
    async with running_engine(portable, artifact, settings) as harness:
        found = harness.engine.table.find("s")
        assert found is not None
        await harness.step(found, random_inputs(2, 6))
        assert found.replayed_elsewhere
        assert harness.metrics.replays_elsewhere._value.get() == 1
