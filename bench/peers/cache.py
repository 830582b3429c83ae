"""Where the peers are installed: in a cache folder, never in this project's environment."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PACKAGE = "dnc==1.1.0"
TRITON = ("nvidia-pytriton==0.7.0", "torch==2.13.0", "uvloop")
INSTALL_TIMEOUT_S = 1800


def cache_folder() -> Path:
    """By the XDG rules."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dnc-serve-bench"


def dnc_package(cache: Path) -> Path:
    """The folder of the `dnc` package of PyPI; it declares a flann that it doesn't need here."""
    folder = cache / "dnc-package"
    if not (folder / "dnc").is_dir():
        _pip([sys.executable], "--no-deps", "--target", str(folder), PACKAGE)
    return folder


def triton_python(cache: Path) -> Path:
    """The interpreter of an environment that has Triton, its client, and torch."""
    folder = cache / "triton"
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _pip([str(python)], *TRITON)
        done.touch()
    return python


def _pip(python: list[str], *arguments: str) -> None:
    print(f"installing {arguments[-1] if '--target' in arguments else ', '.join(arguments)}", file=sys.stderr)
    command = [*python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)
