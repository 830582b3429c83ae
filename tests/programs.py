"""Programs of the system that tests need: they are real here, or the test says that it was left out."""

import os
import shutil

import pytest

# Set where nothing may be left out.
COMPLETE_VARIABLE = "TESTS_COMPLETE"


def program(*names: str) -> str:
    """The path of the first of these that is installed; without any, a test is skipped, or fails in a complete run."""
    for name in names:
        if path := shutil.which(name):
            return path
    missing = f"{' or '.join(names)} is not installed"
    if os.environ.get(COMPLETE_VARIABLE):
        pytest.fail(f"{missing}, and {COMPLETE_VARIABLE} is set")
    pytest.skip(missing)
