"""The documentation's page about a memory says what its code prints."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "docs" / "make_memory_page.py"


def test_the_page_is_up_to_date() -> None:
    checked = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stderr
