"""Where the peers are installed, in a cache folder and never in this project's environment, and how they start."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

PACKAGE = "dnc==1.1.0"
TRITON = ("nvidia-pytriton==0.7.0", "torch==2.13.0")
KSERVE = ("kserve==0.21.0", "setuptools<81")
LOAD_GENERATOR, ITS_PLATFORM = "perf-analyzer==2.60.0", "manylinux_2_38_x86_64"
# It needs a newer C library than Debian 12 has: that of the next release, unpacked beside it and not installed.
NEXT_RELEASE = "trixie"
LIBRARIES = ("libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libssl3t64", "libzstd1")
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
    return _environment(cache / "triton", TRITON)


def perf_analyzer(cache: Path) -> list[str]:
    """The command of NVIDIA's load generator, which speaks Triton's protocol."""
    folder = cache / "perf-analyzer"
    program, root = folder / "wheel" / "perf_analyzer" / "bin" / "perf_analyzer", folder / "root"
    if not program.is_file():
        wheels = tempfile.mkdtemp(dir=_made(folder))
        only = ("--no-deps", "--only-binary=:all:", "--platform", ITS_PLATFORM, "--dest", wheels)
        _run_pip(sys.executable, "download", *only, LOAD_GENERATOR)
        (wheel,) = Path(wheels).glob("*.whl")
        shutil.unpack_archive(wheel, folder / "wheel", "zip")
        program.chmod(0o755)
    if _starts([str(program)]):
        return [str(program)]
    if not root.is_dir():
        unpack_debian(LIBRARIES, folder / "debs", root)
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    command = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(program)]
    if _starts(command):
        return command
    raise RuntimeError(f"{program} does not start")


def _starts(command: list[str]) -> bool:
    return subprocess.run([*command, "--version"], capture_output=True, check=False).returncode == 0


def unpack_debian(packages: Iterable[str], debs: Path, root: Path) -> None:
    """Packages of Debian's next release into a folder, from the mirror that this system's packages come from."""
    more = Path("/etc/apt/sources.list.d")
    sources = [Path("/etc/apt/sources.list"), *more.glob("*.sources"), *more.glob("*.list")]  # the system's own first
    text = "\n".join(one.read_text() for one in sources if one.is_file())
    mirror = re.search(r"^(?:URIs:|deb )[^\n]*?(\w+://\S+)", text, re.MULTILINE)
    if mirror is None:
        raise RuntimeError("the sources of apt name no mirror")
    for folder in (debs, debs / "lists" / "partial", debs / "cache"):
        _made(folder)
    (debs / "sources.list").write_text(f"deb [trusted=yes] {mirror[1]} {NEXT_RELEASE} main\n")
    options = {
        "Dir::Etc::sourcelist": debs / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::Lists": debs / "lists",
        "Dir::Cache": debs / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*apt, "update"], check=True, timeout=INSTALL_TIMEOUT_S)
    names = [f"{name}/{NEXT_RELEASE}" for name in packages]
    subprocess.run([*apt, "download", *names], check=True, cwd=debs, timeout=INSTALL_TIMEOUT_S)
    for deb in debs.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(deb), str(root)], check=True)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kserve_python(cache: Path) -> Path:
    """The interpreter of an environment that has KServe's SDK, which wants other versions than this project."""
    return _environment(cache / "kserve", KSERVE)


def _environment(folder: Path, packages: tuple[str, ...]) -> Path:
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _pip(str(python), *packages)
        done.touch()
    return python


def _pip(python: str, *arguments: str) -> None:
    print(f"installing {arguments[-1] if '--target' in arguments else ', '.join(arguments)}", file=sys.stderr)
    _run_pip(python, "install", *arguments)


def _run_pip(python: str, verb: str, *arguments: str) -> None:
    command = [python, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", *arguments]
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
