"""Where the peers are installed, in a cache folder and never in this project's environment, and how they start."""

import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from contextlib import ExitStack
from pathlib import Path

PACKAGE = "dnc==1.1.0"
TRITON = ("nvidia-pytriton==0.7.0", "torch==2.13.0")
INSTALL_TIMEOUT_S = 1800
START_TIMEOUT_S = 120.0


def cache_folder() -> Path:
    """By the XDG rules."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dnc-serve-bench"


def dnc_package(cache: Path) -> Path:
    """The folder of the `dnc` package of PyPI; it declares a flann that it doesn't need here."""
    folder = cache / "dnc-package"
    if not (folder / "dnc").is_dir():
        _pip(sys.executable, "--no-deps", "--target", str(folder), PACKAGE)
    return folder


def triton_python(cache: Path) -> Path:
    """The interpreter of an environment that has Triton and torch."""
    folder = cache / "triton"
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _pip(str(python), *TRITON)
        done.touch()
    return python


def _pip(python: str, *arguments: str) -> None:
    print(f"installing {arguments[-1] if '--target' in arguments else ', '.join(arguments)}", file=sys.stderr)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens at now, for servers that can't be told to choose one."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until_open(port: int) -> None:
    """Raises TimeoutError if nobody listens in time."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody listens at port {port} after {START_TIMEOUT_S:.0f} s") from None
            time.sleep(0.1)
