"""The documentation's pages about memories say what their code and their commands print."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "docs" / "make_memory_page.py"


@pytest.mark.long
@pytest.mark.parametrize("page", ["memory.md", "recall-and-graph.md"])
def test_the_page_is_up_to_date(page: str) -> None:
    checked = subprocess.run([sys.executable, SCRIPT, "--check", page], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
