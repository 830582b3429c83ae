"""TorchScript's tiles: how large, and where."""

from pathlib import Path

import pytest
import torch

from dnc_serve.handler.engine import tiles as tiles_module
from dnc_serve.handler.engine.tiles import Tiles
from dnc_serve.model.export import Artifact, load_artifact


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tiles_on_a_gpu_agree_with_each_other_and_nearly_with_the_cpu(artifact_folder: Path, tiles: Tiles) -> None:
    on_gpu = Tiles(load_artifact(artifact_folder, "cuda"), "cuda")
    assert len(on_gpu.sizes) > 1
    inputs, states = torch.ones(1, 8, on_gpu.input_size), torch.zeros(8, on_gpu.layout.size)
    found, _ = on_gpu.run(inputs.cuda(), states.cuda())
    torch.testing.assert_close(found.cpu(), tiles.run(inputs, states)[0], rtol=0, atol=1e-4)


def test_large_states_are_stepped_in_smaller_tiles(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    row_bytes = 4 * artifact.layout.size
    monkeypatch.setitem(tiles_module.MAX_TILE_BYTES, "cpu", 13 * row_bytes)
    assert max(Tiles(artifact, "cpu").sizes) == 12
    monkeypatch.setitem(tiles_module.MAX_TILE_BYTES, "cpu", row_bytes // 2)
    alone = Tiles(artifact, "cpu")
    assert alone.sizes == (1,)
    outputs, _ = alone.run(torch.ones(3, 1, artifact.config.input_size), torch.zeros(1, artifact.layout.size))
    assert outputs.shape == (3, 1, artifact.config.outputs)
