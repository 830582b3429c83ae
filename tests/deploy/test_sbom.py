"""The bill of materials names what is installed."""

import json
import os
import subprocess
from importlib.metadata import files, version
from pathlib import Path

from tests.deploy.observed import DEPLOY


def test_the_bill_names_what_is_installed_with_version_and_licence() -> None:
    done = subprocess.run([DEPLOY / "sbom.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bill = json.loads(done.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "dnc-serve"
    components = {component["name"]: component for component in bill["components"]}
    for name in ("grpcio", "protobuf", "torch"):
        assert components[name]["version"] == version(name)
    assert components["torch"]["licenses"]


def test_the_bill_of_an_image_names_what_its_files_name(tmp_path: Path) -> None:
    """The image is a folder here, and the engine a script that exports it: CI has no container engine."""
    packages = tmp_path / "image" / "opt" / "venv" / "lib" / "python3.11" / "site-packages"
    for name in ("grpcio", "torch"):
        [metadata] = [file for file in files(name) or () if file.name == "METADATA"]
        folder = packages / Path(str(metadata)).parent.name
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(Path(str(metadata.locate())).read_text())
    engine = tmp_path / "engine"
    engine.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n'
        f"case $1 in create) echo made-of-$2;; export) tar -c -C {tmp_path}/image opt;; esac\n"
    )
    engine.chmod(0o755)
    done = subprocess.run(
        [DEPLOY / "sbom.sh", "some:image"],
        capture_output=True,
        text=True,
        env={**os.environ, "CONTAINER": str(engine)},
    )
    assert done.returncode == 0, done.stderr
    components = {one["name"]: one["version"] for one in json.loads(done.stdout)["components"]}
    assert components == {name: version(name) for name in ("grpcio", "torch")}
    asked = ["create some:image", "export made-of-some:image", "rm made-of-some:image"]
    assert (tmp_path / "asked").read_text().splitlines() == asked


def test_a_wrong_call_says_how() -> None:
    done = subprocess.run([DEPLOY / "sbom.sh", "one", "two"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr
