import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from dnc_serve.model import DNC, ArtifactError, load_artifact, load_model
from dnc_serve.model.artifact import MANIFEST_FILE, MODULE_FILE
from dnc_serve.model.export import export
from dnc_serve.model.weights import WEIGHTS_FILE


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    export(DNC(3, 5, nr_cells=4, dropout=0.5), folder)
    return folder


@pytest.fixture
def artifact_folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def edit_manifest(folder: Path, **changes) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize("nr_cells", [None, 11])
def test_an_artifact_steps_as_the_model_it_came_from(tmp_path, nr_cells):
    dnc = DNC(3, 5, nr_cells=4, dropout=0.5)
    manifest = export(dnc, tmp_path, nr_cells=nr_cells)
    assert dnc.training, "the model itself is left as it was"
    artifact = load_artifact(tmp_path)
    assert artifact.config.nr_cells == (nr_cells or 4)
    assert artifact.digest == manifest["digest"] == artifact.manifest["digest"]
    assert manifest["state_size"] == artifact.layout.size
    assert manifest["torch"] == torch.__version__

    reference = load_model(tmp_path).eval()
    inputs = torch.randn(6, 2, 3)
    with torch.inference_mode():
        outputs, packed = artifact.tick(inputs, torch.zeros(2, artifact.layout.size))
        expected, state = reference.unroll(inputs, reference.initial_state(2))
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(packed, artifact.layout.pack(state), rtol=0, atol=1e-6)


def test_a_double_precision_model_is_exported_in_single(tmp_path):
    export(DNC(3, 5).double(), tmp_path)
    assert load_artifact(tmp_path).tick(torch.zeros(1, 1, 3), torch.zeros(1, load_artifact(tmp_path).layout.size))


def test_a_wrong_number_of_slots_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nr_cells is 0; expected at least 1"):
        export(DNC(3, 5), tmp_path, nr_cells=0)


def test_a_model_that_feeds_reads_back_between_calls_is_refused(tmp_path):
    with pytest.raises(ValueError, match="read_feedback is 'call'; expected 'timestep': a session's timesteps"):
        export(DNC(3, 5, read_feedback="call"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"nowhere/manifest\.json doesn't exist\. Give the folder"):
        load_artifact(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [MODULE_FILE, WEIGHTS_FILE])
def test_missing_and_damaged_files_are_named(artifact_folder, name):
    content = bytearray((artifact_folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (artifact_folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} doesn't fit its manifest"):
        load_artifact(artifact_folder)
    (artifact_folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} doesn't exist"):
        load_artifact(artifact_folder)


def test_the_module_of_another_model_is_refused(artifact_folder, tmp_path):
    export(DNC(3, 5, nr_cells=9), tmp_path / "other")
    shutil.copy(tmp_path / "other" / MODULE_FILE, artifact_folder)
    with pytest.raises(ArtifactError, match=r"model\.pt doesn't fit its manifest"):
        load_artifact(artifact_folder)
    manifest = json.loads((artifact_folder / MANIFEST_FILE).read_text())
    other = json.loads((tmp_path / "other" / MANIFEST_FILE).read_text())
    edit_manifest(artifact_folder, files={**manifest["files"], MODULE_FILE: other["files"][MODULE_FILE]})
    with pytest.raises(ArtifactError, match="can't step"):
        load_artifact(artifact_folder)


def test_a_file_that_is_not_torchscript_is_refused(artifact_folder):
    torch.save({"weights": torch.zeros(3)}, artifact_folder / MODULE_FILE)
    content = (artifact_folder / MODULE_FILE).read_bytes()
    manifest = json.loads((artifact_folder / MANIFEST_FILE).read_text())
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(artifact_folder, files={**manifest["files"], MODULE_FILE: facts})
    with pytest.raises(ArtifactError, match="can't be loaded by torch"):
        load_artifact(artifact_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch": "1.13.1"}, "exported with torch 1.13.1, and this is torch"),
        ({"format": 7}, "has format 7; this version reads 1 and 2"),
        ({"state_size": 3}, "says state_size 3, but the rest of it makes it"),
        ({"inputs": {"shape": [4], "dtype": "float32"}}, r"says inputs .*4.*, but the rest of it makes it .*3"),
        ({"digest": "00"}, "names the digest 00, but config and weights have"),
        ({"config": {"input_size": 3, "hidden_size": -1}}, "can't be used: hidden_size is -1"),
        ({"files": {}}, "names no sha256 of model.pt"),
    ],
)
def test_an_edited_manifest_is_refused(artifact_folder, changes, message):
    edit_manifest(artifact_folder, **changes)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(artifact_folder)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"format": 1}'])
def test_what_is_no_manifest_is_refused(artifact_folder, text):
    (artifact_folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json (isn't an artifact's manifest|lacks)"):
        load_artifact(artifact_folder)
