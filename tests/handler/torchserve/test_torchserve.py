"""What TorchServe is given: an archive, its properties, and a worker on the device that it assigns."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.artifact import resolve_artifact
from dnc_serve.handler.torchserve.archive import write_archive
from dnc_serve.handler.torchserve.torchserve import properties
from dnc_serve.handler.torchserve.worker import assigned_device
from dnc_serve.model.artifact import load_artifact


def test_an_archive_gives_its_artifact_back_and_is_the_same_each_time(artifact_folder: Path, tmp_path: Path) -> None:
    config = ServeConfig(batch_size=7, response_timeout_s=33)
    for name in ("one.mar", "two.mar"):
        write_archive([artifact_folder], tmp_path / name, config)
    assert (tmp_path / "one.mar").read_bytes() == (tmp_path / "two.mar").read_bytes()
    unpacked = resolve_artifact(str(tmp_path / "one.mar"), None, tmp_path, tmp_path)
    assert load_artifact(unpacked).digest == load_artifact(artifact_folder).digest
    with zipfile.ZipFile(tmp_path / "one.mar") as archive:
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
        assert manifest["model"]["handler"] == "dnc_serve_entry.py" in archive.namelist()
        settings = archive.read(manifest["model"]["configFile"]).decode().split("\n")
    assert {"maxBatchDelay: 1", "batchSize: 7", "responseTimeout: 33", "minWorkers: 1", "maxWorkers: 1"} <= set(
        settings
    )


def test_properties_keep_torchserve_on_loopback_and_to_its_own_store(tmp_path: Path) -> None:
    config = ServeConfig(host="0.0.0.0", insecure=True, device="cpu", max_message_bytes=2**30)
    lines = dict(line.split("=", 1) for line in properties(config, tmp_path, 4567).splitlines())
    for name in ("inference", "management", "metrics"):
        assert lines[f"{name}_address"].startswith("http://127.0.0.1:")
        assert lines.get(f"grpc_{name}_address", "127.0.0.1") == "127.0.0.1"
    assert re.fullmatch(lines["allowed_urls"].replace("\\\\", "\\"), f"file://{tmp_path}/store/any.mar")
    assert lines["initial_worker_port"] == "4567"
    assert lines["number_of_gpu"] == "0"
    assert int(lines["max_request_size"]) == 2**31 - 1


@pytest.mark.parametrize(
    ("wanted", "gpu_id", "device"),
    [("auto", None, "cpu"), ("auto", -1, "cpu"), ("cpu", 1, "cpu"), ("cuda:3", 1, "cuda:3")],
)
def test_the_worker_steps_on_the_device_that_torchserve_assigns_or_the_configured_one(
    wanted: str, gpu_id: int | None, device: str
) -> None:
    assert assigned_device(wanted, gpu_id) == device


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a torch that can't use the GPU")
def test_an_assigned_gpu_that_torch_cannot_use_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    assert assigned_device("auto", 0) == "cpu"
    assert "TorchServe assigned GPU 0" in caplog.text
