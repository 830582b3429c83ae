"""Machine code of the tick: what it is compiled for, where it is kept, and how it is called.

Nothing here needs Numba: another process compiles, and what it made is loaded by llvmlite.
"""

import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dnc_serve.model.config import DNCConfig

SYMBOL = "dnc_tick"
ARGUMENTS = 11
AROUND = ("__init__.py", "code.py", "row_kernel.py", "warm.py")  # what is not compiled
# What a processor of 64-bit x86 must have: for all of AVX2's level, and for that of 512 bits.
LEVEL_3 = ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
LEVEL_4 = (*LEVEL_3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
WITHOUT_EFFECT = (
    "dropout", "stop_usage_gradient", "read_feedback", "independent_linears", "bias", "memory", "sparse_reads",
    "temporal_reads",
)  # fmt: skip
NO_NUMBA = "numba is not installed; the extra `serve` brings it"


class KernelError(Exception):
    """The row kernel can't be had; the message says why."""


@dataclass(frozen=True)
class CompileRequest:
    """What is compiled, and for which kind of processor."""

    config: dict[str, Any]
    precision: str = "float32"
    processor: str = ""
    features: str = ""
    wide: bool = False


def request(config: DNCConfig, precision: str = "float32", most_bits: int = 512) -> CompileRequest:
    """The request for this host. On x86 bits depend neither on the processor nor on the width of its registers.

    Raises KernelError for a sparse memory, where llvmlite is missing, or for a processor that lacks fused multiply-add.
    """
    if config.is_sparse:
        raise KernelError(f"it steps dense memories, and this model's is {config.memory}")
    settings = {name: value for name, value in config.to_dict().items() if name not in WITHOUT_EFFECT}
    llvm = _llvm()
    if not _versions()[0]:
        raise KernelError(NO_NUMBA)
    features = llvm.get_host_cpu_features()
    if platform.machine() not in ("x86_64", "AMD64"):
        return CompileRequest(settings, precision, llvm.get_host_cpu_name(), features.flatten())
    if most_bits >= 512 and all(features.get(name) for name in LEVEL_4):
        return CompileRequest(settings, precision, "x86-64-v4", "", wide=True)
    lacking = [name for name in LEVEL_3 if not features.get(name)]
    if lacking:
        raise KernelError(f"the processor lacks {', '.join(lacking)}, which the row kernel needs")
    return CompileRequest(settings, precision, "x86-64-v3")


def any_of(asked: CompileRequest) -> list[CompileRequest]:
    """The same for each kind of processor that this code may be moved to: an image is run where it was not built."""
    if not asked.processor.startswith("x86-64-v"):
        return [asked]
    return [replace(asked, processor=f"x86-64-v{level}", wide=level == 4) for level in (3, 4)]


def identity() -> str:
    """What the bits of a tick depend on beside its weights and sizes: the kernel's source, and who compiled it."""
    return json.dumps([_source(), platform.machine(), *_versions()])


def user_cache() -> Path:
    """Where `make install` and `dnc export` keep code, by the XDG rules."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dnc-serve" / "kernel"


def code_file(folder: Path, asked: CompileRequest) -> Path:
    """Its name is made of all that the code depends on."""
    described = json.dumps([asdict(asked), identity()], sort_keys=True)
    return folder / f"{hashlib.sha256(described.encode()).hexdigest()[:32]}.kernel"


def compiled(asked: CompileRequest, folders: Iterable[Path]) -> Path | None:
    """The code's file, from the first of the folders that has it in good order."""
    for folder in folders:
        file = code_file(folder, asked)
        try:
            _read(file)
        except KernelError:
            continue
        return file
    return None


def writable(folder: Path) -> bool:
    """Whether the folder can hold compiled code; it is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def compile_code(requests: Sequence[CompileRequest], folder: Path) -> list[Path]:
    """Compiles into the folder, in a process of its own: some ten seconds, and two for each request but the first.

    Raises KernelError if that fails, or a folder can't be written to.
    """
    if not requests:
        return []
    files = [code_file(folder, asked) for asked in requests]
    if not writable(folder):
        raise KernelError(f"{folder} can't be written to")
    try:
        beside = Path(tempfile.mkdtemp(prefix=".compiling-", dir=folder))
    except OSError as exc:
        raise KernelError(f"{folder} can't hold compiled code: {exc.strerror}") from exc
    try:
        # So Numba compiles for that processor too.
        target = {"NUMBA_CPU_NAME": requests[0].processor, "NUMBA_CPU_FEATURES": requests[0].features}
        done = subprocess.run(
            [sys.executable, "-m", f"{__package__}.compiler", *(beside / file.name for file in files)],
            input=json.dumps([asdict(asked) for asked in requests]),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | target,
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise KernelError(f"the row kernel can't be compiled: {last}")
        for file in files:
            _read(beside / file.name)
            (beside / file.name).replace(file)  # complete, or not at all
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return files


def write_code(file: Path, code: bytes, scratch: int, integers: int) -> None:
    """A line of JSON, then the object file."""
    facts = {"sha256": hashlib.sha256(code).hexdigest(), "scratch": int(scratch), "integers": int(integers)}
    file.write_bytes(json.dumps(facts).encode() + b"\n" + code)


def _read(file: Path) -> tuple[dict[str, Any], bytes]:
    try:
        first, _, code = file.read_bytes().partition(b"\n")
        facts = json.loads(first)
        if facts["sha256"] != hashlib.sha256(code).hexdigest():
            raise ValueError("its checksum is another")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise KernelError(f"{file} holds no compiled code in good order: {exc}") from exc
    return facts, code


class TickCode:
    """Loaded code. `call(address)` runs it, with a block of its arguments there, and lets other threads run."""

    def __init__(self, file: Path) -> None:
        llvm = _llvm()
        facts, code = _read(file)
        self.scratch, self.integers = int(facts["scratch"]), int(facts["integers"])
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(codemodel="jitdefault", jit=True)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)  # owns the code
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._engine.get_function_address(SYMBOL))


def _llvm() -> Any:
    try:
        import llvmlite.binding as llvm
    except ImportError as exc:
        raise KernelError(NO_NUMBA) from exc
    return llvm


@cache
def _source() -> str:
    """A digest of the source that is compiled, and of how weights are packed for it."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.name not in AROUND:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _versions() -> tuple[str, str]:
    try:
        return version("numba"), version("llvmlite")
    except PackageNotFoundError:
        return "", ""
