"""The bill of materials names what is installed."""

import json
import subprocess
from importlib.metadata import version

from tests.deploy.observed import DEPLOY


def test_the_bill_names_what_is_installed_with_version_and_licence() -> None:
    done = subprocess.run([DEPLOY / "sbom.sh"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    bill = json.loads(done.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "dnc-serve"
    components = {component["name"]: component for component in bill["components"]}
    for name in ("grpcio", "protobuf", "torch"):
        assert components[name]["version"] == version(name)
    assert components["torch"]["licenses"]


def test_a_wrong_call_says_how() -> None:
    done = subprocess.run([DEPLOY / "sbom.sh", "one", "two"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "usage" in done.stderr
