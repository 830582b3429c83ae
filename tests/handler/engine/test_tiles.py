"""Tiles of code that is compiled for this host, and what happens where it isn't to be trusted."""

import json
import shutil
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine import tiles as tiles_module
from dnc_serve.handler.engine.tiles import Tiles, choose_tiles
from dnc_serve.handler.engine.work import Peek
from dnc_serve.model.compiled import load_compiled
from dnc_serve.model.compiled_cache import MANIFEST_FILE, CompiledError, compiled_key
from dnc_serve.model.compiled_code import load_code
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import Artifact, export, load_artifact

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


@pytest.fixture(scope="module")
def tiles(compiled_tiles: Tiles) -> Tiles:
    """What the tests of the engine are given here."""
    return compiled_tiles


@pytest.fixture(scope="module")
def portable(artifact: Artifact) -> Tiles:
    return Tiles(artifact, "cpu")


@pytest.fixture
def cache(compiled_cache: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(compiled_cache, tmp_path / "cache"))


def test_compiled_code_is_used_where_it_is_at_hand(tiles: Tiles, portable: Tiles) -> None:
    assert (tiles.kind, tiles.note, tiles.sizes) == ("aotinductor", "", (8,))
    assert [(other.kind, other.fingerprint) for other in tiles.others] == [("torchscript", portable.fingerprint)]
    assert tiles.fingerprint != portable.fingerprint
    assert tiles.difference(portable) <= 1e-5


@pytest.mark.parametrize("timesteps", [1, 2, 4, 5, 11])
def test_any_number_of_timesteps_has_the_bits_of_single_ones(tiles: Tiles, portable: Tiles, timesteps: int) -> None:
    inputs = torch.stack([torch.from_numpy(random_inputs(row, timesteps)) for row in range(8)], 1)
    zeros = torch.zeros(8, tiles.layout.size)
    outputs, after = tiles.run(inputs, zeros)
    state, one_by_one = zeros, []
    for timestep in range(timesteps):
        output, state = tiles.run(inputs[timestep : timestep + 1], state)
        one_by_one.append(output)
    assert torch.equal(outputs, torch.cat(one_by_one))
    assert torch.equal(after, state)
    assert not zeros.any()
    assert torch.allclose(outputs, portable.run(inputs, zeros)[0], atol=1e-5)


def test_without_compiled_code_the_note_says_how_to_get_it(artifact: Artifact, tmp_path: Path) -> None:
    tiles = choose_tiles(artifact, "cpu", tmp_path)
    assert tiles.kind == "torchscript"
    assert "dnc serve --compile" in tiles.note


@pytest.mark.parametrize("spoil", ["cut", "flip", "no package", "no manifest", "torn manifest", "other format"])
def test_a_damaged_cache_is_never_loaded(artifact: Artifact, cache: Path, spoil: str) -> None:
    folder = cache / compiled_key(artifact.digest)
    package, manifest = next(folder.glob("*.pt2")), folder / MANIFEST_FILE
    match spoil:
        case "cut":
            package.write_bytes(package.read_bytes()[:-100])
        case "flip":
            content = bytearray(package.read_bytes())
            content[len(content) // 2] ^= 1
            package.write_bytes(content)
        case "no package":
            package.unlink()
        case "no manifest":
            manifest.unlink()
        case "torn manifest":
            manifest.write_bytes(manifest.read_bytes()[:200])
        case "other format":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    tiles = choose_tiles(artifact, "cpu", cache)
    assert tiles.kind == "torchscript"
    assert str(folder) in tiles.note


def test_code_of_another_torch_is_not_looked_at(
    artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.raises(CompiledError, match="has none of this model for this host"):
        load_compiled(artifact, cache)


def test_code_that_computes_something_else_is_refused(artifact: Artifact, cache: Path, tmp_path: Path) -> None:
    dnc = DNC.from_config(artifact.config)
    export(dnc, tmp_path / "another")
    another = load_artifact(tmp_path / "another")
    folder = (cache / compiled_key(artifact.digest)).rename(cache / compiled_key(another.digest))
    manifest = folder / MANIFEST_FILE
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"key": folder.name}))
    tiles = choose_tiles(another, "cpu", cache)
    assert tiles.kind == "torchscript"
    assert "differ from TorchScript's" in tiles.note


def test_code_whose_bits_depend_on_the_ticks_of_a_call_is_refused(artifact: Artifact, compiled_cache: Path) -> None:
    compiled = load_compiled(artifact, compiled_cache)
    right = compiled.code[8, 4]

    def rounding(inputs: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Compiled code that rounds otherwise: none that does so can be had for the asking."""
        outputs, after = right(inputs, states)
        return outputs * (1 + 2**-23), after

    otherwise = replace(compiled, code=compiled.code | {(8, 4): rounding})
    with pytest.raises(CompiledError, match="depend on"):
        Tiles(artifact, "cpu", compiled=otherwise)


def test_while_compiled_code_runs_other_threads_go_on(artifact: Artifact, compiled_cache: Path) -> None:
    code = load_compiled(artifact, compiled_cache).code[8, 4]
    inputs, states = torch.ones(4, 8, artifact.config.input_size), torch.zeros(8, artifact.layout.size)
    expected = code(inputs, states)

    enough = threading.Event()

    def many() -> tuple[Tensor, Tensor]:
        for _ in range(1_000_000):
            given = code(inputs, states)
            if enough.is_set():
                break
        return given

    before, turns = sys.getswitchinterval(), 0
    sys.setswitchinterval(100.0)  # nobody is made to let go of the interpreter
    try:
        with ThreadPoolExecutor(2) as threads:
            given = [threads.submit(many) for _ in range(2)]
            while turns < 100 and not all(future.done() for future in given):
                turns += 1
                time.sleep(0)
            enough.set()
    finally:
        sys.setswitchinterval(before)
    assert turns == 100
    for future in given:
        assert all(map(torch.equal, future.result(), expected))


@pytest.mark.parametrize("content", [b"no archive", b""], ids=["no archive", "an archive without code"])
def test_a_package_that_holds_no_code_is_refused(content: bytes, tmp_path: Path) -> None:
    package = tmp_path / "8_rows_1_ticks.pt2"
    if content:
        package.write_bytes(content)
    else:
        zipfile.ZipFile(package, "w").close()
    with pytest.raises(OSError, match=r"0 libraries|not a zip file"):
        load_code(package, torch.device("cpu"))


async def test_each_record_is_replayed_by_what_computed_it(
    tiles: Tiles, portable: Tiles, artifact: Artifact, tmp_path: Path
) -> None:
    settings = ServeConfig(state_dir=tmp_path, snapshot_every_timesteps=1000)
    recorded: list[bytes] = []
    for turn, stepped_by in enumerate([portable, tiles, portable]):
        # Under TorchScript alone, compiled code's records would be replayed elsewhere; here it is beside the other.
        beside = Tiles(artifact, "cpu") if stepped_by is portable else stepped_by
        beside.others = (tiles,) if stepped_by is portable else (portable,)
        async with running_engine(beside, artifact, settings) as harness:
            session = harness.engine.registry.find("s") or await harness.create("s")
            for part in range(3):
                await harness.step(session, random_inputs(10 * turn + part, 7), reset_experience=part == 1)
            assert not session.replayed_elsewhere
            assert session.fingerprint == stepped_by.fingerprint
            seen = await harness.do(session, Peek)
            recorded.append(seen.state.tobytes())
    async with running_engine(tiles, artifact, settings) as harness:
        session = harness.engine.registry.find("s")
        assert session is not None
        seen = await harness.do(session, Peek)
        assert seen.state.tobytes() == recorded[-1]
        assert seen.fingerprint == portable.fingerprint
        for turn, position in enumerate((21, 42)):
            past = await harness.engine.loading.look_back(session, position)
            assert past.state is not None
            assert past.state.tobytes() == recorded[turn]
        assert not session.replayed_elsewhere


async def test_what_is_not_at_hand_is_replaced_and_said(
    tiles: Tiles, portable: Tiles, artifact: Artifact, tmp_path: Path
) -> None:
    settings = ServeConfig(state_dir=tmp_path)
    async with running_engine(tiles, artifact, settings) as harness:
        session = await harness.create("s")
        await harness.step(session, random_inputs(1, 6))
    async with running_engine(portable, artifact, settings) as harness:
        found = harness.engine.registry.find("s")
        assert found is not None
        await harness.step(found, random_inputs(2, 6))
        assert found.replayed_elsewhere
        assert harness.engine.metrics.replayed_elsewhere._value.get() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tiles_on_a_gpu_agree_with_each_other_and_nearly_with_the_cpu(artifact_folder: Path, portable: Tiles) -> None:
    on_gpu = Tiles(load_artifact(artifact_folder, "cuda"), "cuda")
    assert len(on_gpu.sizes) > 1
    assert on_gpu.difference(portable) <= 1e-4


def test_large_states_are_stepped_in_smaller_tiles(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    row_bytes = 4 * artifact.layout.size
    monkeypatch.setitem(tiles_module.MAX_TILE_BYTES, "cpu", 13 * row_bytes)
    assert max(Tiles(artifact, "cpu").sizes) == 12
    monkeypatch.setitem(tiles_module.MAX_TILE_BYTES, "cpu", row_bytes // 2)
    alone = Tiles(artifact, "cpu")
    assert alone.sizes == (1,)
    outputs, _ = alone.run(torch.ones(3, 1, artifact.config.input_size), torch.zeros(1, artifact.layout.size))
    assert outputs.shape == (3, 1, artifact.config.outputs)
