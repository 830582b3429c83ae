"""What the README and the pages of docs/ say can be pasted, as a user pastes it."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def block(page: str, language: str, mark: str) -> str:
    """The one block of a page that is in the language and holds the mark."""
    text = (ROOT / page).read_text()
    [found] = [each for each in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if mark in each]
    return found


def run_shell(script: str, folder: Path, **environment: str) -> str:
    """What it prints; the environment is activated, as for whoever pastes."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euc", script]
    variables = {**os.environ, "PATH": path, **environment}
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, (script, result.stdout, result.stderr)
    return result.stdout


def run_python(source: str, folder: Path) -> str:
    """What it prints, in a process of its own."""
    result = subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, (source, result.stdout, result.stderr)
    return result.stdout
