"""The artifact compiled ahead of time for one kind of host: faster code beside the TorchScript that runs anywhere.

AOTInductor makes a package of machine code for each number of rows and of ticks. They lie in a folder of a cache; see
`compiled_cache.py`.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnc_serve.model.compiled_cache import (
    CompiledError,
    compiled_key,
    filled,
    intact,
    package_file,
    read_manifest,
    write_manifest,
)
from dnc_serve.model.compiled_code import Code, load_code
from dnc_serve.model.decompositions import decompositions
from dnc_serve.model.export import Artifact, ArtifactError, load_artifact
from dnc_serve.model.tick import TickModule
from dnc_serve.model.weights import load_model

TILE_SIZES = (8, 16, 32, 64)
# Rows of larger states gain nothing from company: they are compiled one by one, and a lone one pays for itself alone.
MOST_BYTES_OF_MANY_ROWS = 256 << 10
# A call of several ticks saves what each call costs, which is little beside the ticks of a model of many layers; and
# those are compiled in minutes.
TICKS = (1, 8)
MOST_LAYERS_OF_MANY_TICKS = 2
# Code that computes with more threads than one adds up in an order of its own.
OPTIONS = {"cpp.threads": 1}
MOST_COMPILERS = 4  # at once; each takes half a gigabyte

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CompiledArtifact:
    """Code for some numbers of rows, to be called as a `TickModule` is; `identity` names what its bits depend on."""

    sizes: tuple[int, ...]
    identity: str
    code: dict[tuple[int, int], Code]  # by rows and ticks
    ticks: tuple[int, ...]  # the most first, 1 last

    def __call__(self, inputs: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
        """From inputs [T, B, I] and states [B, S], outputs [T, B, O] and the states after them; changes neither.

        B must be one of `sizes`.
        """
        rows, left, start = packed.size(0), inputs.size(0), 0
        inputs, packed = inputs.contiguous(), packed.contiguous()  # the code takes addresses, not strides
        outputs: list[Tensor] = []
        for ticks in self.ticks:
            while left >= ticks:
                output, packed = self.code[rows, ticks](inputs[start : start + ticks], packed)
                outputs.append(output)
                start, left = start + ticks, left - ticks
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), packed


def compile_artifact(
    artifact_folder: str | Path,
    cache: str | Path,
    tile_sizes: Sequence[int] | None = None,
    ticks: Sequence[int] | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Path:
    """Compiles an artifact for this host, unless the cache has it, and returns its folder in the cache.

    `ticks` must have 1 in it; not given, they are chosen by the number of layers, and the tile sizes by that of a
    state. `progress(done, total)` is told the packages. Raises CompiledError, ArtifactError.
    """
    artifact = load_artifact(artifact_folder)
    folder = Path(cache) / compiled_key(artifact.digest, device)
    if intact(folder):
        return folder
    if ticks is None:
        ticks = TICKS if artifact.config.num_layers <= MOST_LAYERS_OF_MANY_TICKS else TICKS[:1]
    if tile_sizes is None:
        tile_sizes = TILE_SIZES if 4 * artifact.layout.size <= MOST_BYTES_OF_MANY_ROWS else (1,)
    if 1 not in ticks or not tile_sizes:
        raise ValueError(
            f"ticks are {tuple(ticks)} and tile_sizes {tuple(tile_sizes)}; expected 1 and some size in them"
        )
    compiler = _compiler()
    if not compiler:
        raise CompiledError("compiling takes a C++ compiler; install g++, or name another in CXX")
    jobs = [(rows, count) for count in sorted(ticks, reverse=True) for rows in sorted(tile_sizes, reverse=True)]
    with filled(folder) as beside:
        _compile_all(Path(artifact_folder), beside, jobs, device, progress or (lambda done, total: None))
        write_manifest(beside, folder.name, jobs, digest=artifact.digest, device=device, compiler=compiler)
    return folder


def load_compiled(artifact: Artifact, cache: str | Path, device: torch.device | str = "cpu") -> CompiledArtifact:
    """The compiled artifact of this model for this host. Raises CompiledError if there is none, or a damaged one."""
    device = torch.device(device)
    folder = Path(cache) / compiled_key(artifact.digest, device)
    if not folder.is_dir():
        raise CompiledError(f"{cache} has none of this model for this host; `dnc serve --compile` makes one")
    manifest = read_manifest(folder)
    code = {}
    for package in manifest["packages"]:
        path = folder / package["file"]
        try:
            code[package["rows"], package["ticks"]] = load_code(path, device)
        except (RuntimeError, OSError, ImportError, AttributeError) as exc:  # the last two of another torch
            raise CompiledError(f"{path} can't be loaded: {exc}") from exc
    sizes = sorted({rows for rows, _ in code})
    ticks = sorted({count for _, count in code}, reverse=True)
    identity = json.dumps([manifest["key"], manifest["compiler"], sizes, ticks])
    return CompiledArtifact(tuple(sizes), identity, code, tuple(ticks))


# Compiling.


def _compile_all(
    artifact_folder: Path, folder: Path, jobs: list[tuple[int, int]], device: str, progress: Progress
) -> None:
    scratch = folder / "scratch"
    # Processes of their own: the compiler leaves settings and memory behind, and one package takes one core.
    context = multiprocessing.get_context("spawn")
    compilers, others = min(os.cpu_count() or 1, len(jobs), MOST_COMPILERS), set(multiprocessing.active_children())
    with ProcessPoolExecutor(compilers, context, _begin_compiling, (str(scratch),)) as pool:
        futures = [pool.submit(_compile_one, artifact_folder, folder, rows, count, device) for rows, count in jobs]
        try:
            progress(0, len(jobs))
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                progress(done, len(jobs))
        except BaseException as exc:
            pool.shutdown(wait=False, cancel_futures=True)
            for compiler in set(multiprocessing.active_children()) - others:
                compiler.terminate()  # else a stop would wait for minutes until they are done
            if not isinstance(exc, Exception):
                raise
            cause = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
            raise CompiledError(f"{artifact_folder} can't be compiled: {cause}") from exc
    shutil.rmtree(scratch, ignore_errors=True)


def _begin_compiling(scratch: str) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch
    warnings.simplefilter("ignore")  # torch's, about itself
    torch.set_num_threads(1)


def _compile_one(artifact_folder: Path, folder: Path, rows: int, ticks: int, device: str) -> None:
    module = TickModule(load_model(artifact_folder).eval().requires_grad_(False)).to(device)
    inputs = torch.zeros(ticks, rows, module.dnc.config.input_size, device=device)
    packed = torch.zeros(rows, sum(module.packing.sizes), device=device)
    with torch.no_grad():
        program = torch.export.export(module, (inputs, packed), strict=False)
        program = program.run_decompositions(decompositions(module.dnc.nr_cells))
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(folder / package_file(rows, ticks)), inductor_configs=OPTIONS
        )


def _compiler() -> str:
    """The first line of what the C++ compiler says of itself: other compilers may round otherwise."""
    command = [os.environ.get("CXX", "g++"), "--version"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.partition("\n")[
            0
        ]
    except (OSError, subprocess.TimeoutExpired):
        return ""


@contextlib.contextmanager
def stopped_in_good_order() -> Iterator[None]:
    """Within it, SIGTERM ends the program as an exception does, so that nothing is left half-way in the cache."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Compiles ARTIFACT into CACHE for DEVICE, with a bar on a terminal; prints what went wrong, and exits with 1."""
    artifact_folder, cache, device = sys.argv[1:]
    try:
        with stopped_in_good_order(), CompileBar() as bar:
            compile_artifact(artifact_folder, cache, progress=bar.show, device=device)
    except (CompiledError, ArtifactError) as exc:
        sys.stdout.write(f"{exc}\n")
        sys.exit(1)


class CompileBar:
    """A bar on a terminal's standard error, one step for each package; elsewhere nothing."""

    def __init__(self) -> None:
        self._bar: Any = None

    def show(self, done: int, total: int) -> None:
        """Sets the bar, and draws it first when there is something to do."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc="compiling", unit="tile", disable=None)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def __enter__(self) -> "CompileBar":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()
