"""The cache of compiled artifacts: a folder for each model and kind of host, with packages of code and a manifest.

A folder's name is made of all that the code depends on, so a cache can be shared between servers and hosts, and deleted
at any time: a folder appears there complete, in one step, and is checked before it is loaded.
"""

import contextlib
import hashlib
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

MANIFEST_FILE = "compiled.json"
FORMAT = 1
PUT_ATTEMPTS = 20
ABANDONED_S = 24 * 3600.0  # no compilation takes so long


class CompiledError(Exception):
    """There is no compiled artifact to be used; the message says why."""


def processor(device: torch.device) -> str:
    """The kind of processor, as far as code and rounding depend on it."""
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"{torch.cuda.get_device_name(device)} {capability} cuda {torch.version.cuda}"
    facts = {"vendor_id": "", "cpu family": "", "model": "", "flags": "", "Features": ""}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().partition("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            if name.strip() in facts:
                facts[name.strip()] = " ".join(sorted(value.split()))
    else:
        facts["model"] = platform.processor()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {json.dumps(facts)}"


def compiled_key(digest: str, device: torch.device | str = "cpu") -> str:
    """The name of the folder for a model's code: weights, torch, processor and format, as hexadecimal digits."""
    described = [FORMAT, digest, torch.__version__, torch.device(device).type, processor(torch.device(device))]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def package_file(rows: int, ticks: int) -> str:
    """The name of a package's file."""
    return f"{rows}_rows_{ticks}_ticks.pt2"


def write_manifest(
    beside: Path,
    key: str,
    packages: Sequence[tuple[int, int]],
    *,
    digest: str,
    device: torch.device | str,
    compiler: str,
) -> None:
    """Describes the packages (rows, ticks) that a folder holds, before it gets its name: the key."""
    manifest = {
        "format": FORMAT,
        "key": key,
        "digest": digest,
        "torch": torch.__version__,
        "processor": processor(torch.device(device)),
        "compiler": compiler,
        "packages": [
            {
                "rows": rows,
                "ticks": ticks,
                "file": package_file(rows, ticks),
                "sha256": _sha256(beside / package_file(rows, ticks)),
            }
            for rows, ticks in sorted(packages)
        ],
    }
    (beside / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, after a check of every file. Raises CompiledError."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT or manifest["key"] != folder.name or not manifest["packages"]:
            raise CompiledError(f"{path} is of another model, host or version")
        for package in manifest["packages"]:
            if _sha256(folder / package["file"]) != package["sha256"]:
                raise CompiledError(f"{folder / package['file']} is damaged; delete {folder} and compile again")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CompiledError(f"{folder} is damaged ({exc}); delete it and compile again") from exc
    return dict(manifest)


def intact(folder: Path) -> bool:
    """Whether the folder is there, with all that its manifest lists."""
    try:
        read_manifest(folder)
    except CompiledError:
        return False
    return True


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A new folder beside, to be filled; it gets the name of `folder` at the end, and is removed if there is an error.

    Raises CompiledError where the cache can't be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as exc:
        raise CompiledError(f"{folder.parent} can't hold compiled models: {exc.strerror}") from exc
    try:
        yield beside
        _put(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _remove_abandoned(cache: Path) -> None:
    """Removes what compilations that were killed left half-way."""
    for left in cache.glob(".*"):
        with contextlib.suppress(OSError):  # another process may remove it, too
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def _put(beside: Path, folder: Path) -> None:
    """Gives a complete folder its name. Another process may have done so first; then its folder stays."""
    refused: OSError | None = None
    # A damaged folder is moved out of the way; while one process does that, another may put a whole one there.
    for _ in range(PUT_ATTEMPTS):
        try:
            beside.rename(folder)
            return
        except OSError as exc:
            refused = exc
        if intact(folder):
            return
        damaged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        with contextlib.suppress(OSError):
            folder.rename(damaged / "damaged")
        shutil.rmtree(damaged, ignore_errors=True)
    assert refused is not None
    raise CompiledError(f"{folder} can't be written: {refused.strerror}") from refused


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
