"""What steps the sessions: the row kernel where it can be had and has proved itself, else TorchScript in tiles.

The choice is made at the start, and never changes while a server runs.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dnc_serve.handler.engine.kernel_runner import KernelRunner
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.artifact import Artifact
from dnc_serve.model.kernel import (
    CompileRequest,
    KernelError,
    RowKernel,
    TickCode,
    compile_code,
    compiled,
    request,
    user_cache,
    writable,
)
from dnc_serve.model.weights import WEIGHTS_FILE, read_weights

logger = logging.getLogger(__name__)

# Of outputs and states after one tick from the same state, relative to the largest.
TOLERANCE = 1e-5
# Rows in which a near-tie between two slots may fall otherwise than in TorchScript: both orders are right.
SHARE_OF_TIES = 0.1
PROOF_ROWS, PROOF_TICKS, FEWEST_PROOF_TICKS = 20, 200, 20
# Of states in the whole proof, so that a large model's start does not take a minute; and of those at once, of which
# there are some copies.
PROOF_NUMBERS = 100_000_000
NUMBERS_AT_ONCE = 100_000_000
FEWEST_PROOF_ROWS = 4


def choose_runner(artifact: Artifact, device: str, code: str, caches: Sequence[Path]) -> ModelRunner:
    """What `code` (auto, torchscript, program, kernel) asks for; `note` of tiles says why they are not the kernel.

    Compiled code is looked for in the user's cache and `caches`, and put there. Raises ServeError if the kernel, or
    TorchScript, was asked for and can't be had.
    """
    if artifact.config is None and code == "torchscript":
        raise ServeError("INTERNAL", "code is torchscript, which only a DNC has: this model is stepped by its program")
    if code in ("torchscript", "program"):
        return TileRunner(artifact, device, note="the setting code says so")
    try:
        if torch.device(device).type != "cpu":
            raise KernelError(f"it runs on a CPU, and the device is {device}")
        kernel = load_kernel(artifact, caches)
        prove(kernel, artifact)
    except KernelError as exc:
        if code == "kernel":
            raise ServeError("INTERNAL", f"the row kernel was asked for and can't be had: {exc}") from exc
        if artifact.config is not None:
            logger.warning("TorchScript steps the sessions, not the row kernel: %s", exc)
        return TileRunner(artifact, device, note=str(exc))
    return KernelRunner(artifact, kernel)


def load_kernel(artifact: Artifact, caches: Sequence[Path]) -> RowKernel:
    """The artifact's kernel, compiled if no cache has it. Raises KernelError."""
    if artifact.config is None:
        raise KernelError("only a DNC has a row kernel")
    asked = request(artifact.config)
    folders = (user_cache(), *caches)
    file = compiled(asked, folders)
    with tempfile.TemporaryDirectory(prefix="dnc-kernel-") as temporary:
        if file is None:
            logger.warning("the row kernel is compiled for this model: some ten seconds, once")
            file = _compile(asked, folders, Path(temporary))
        code = TickCode(file)
    return RowKernel(artifact.config, read_weights(artifact.folder / WEIGHTS_FILE), code)


def _compile(asked: CompileRequest, caches: Sequence[Path], temporary: Path) -> Path:
    """Into the first cache that can be written to."""
    for cache in caches:
        if writable(cache):
            return compile_code([asked], cache)[0]
    logger.warning("%s can't be written to: each start will compile", " and ".join(map(str, caches)))
    return compile_code([asked], temporary)[0]


def prove(kernel: RowKernel, artifact: Artifact) -> None:
    """Steps both from the same states, many ticks from zero on, where all slots are tied.

    Raises KernelError if outputs differ by more than TOLERANCE from TorchScript's, relative to the largest of them or
    1, or states; of these the rows that differ most are left out.
    """
    size = artifact.layout.size
    count = max(FEWEST_PROOF_ROWS, min(PROOF_ROWS, NUMBERS_AT_ONCE // size))
    ticks = max(FEWEST_PROOF_TICKS, min(PROOF_TICKS, PROOF_NUMBERS // (count * size)))
    judged = count - max(1, int(count * SHARE_OF_TIES))
    random = np.random.default_rng(20161027)
    inputs = random.standard_normal((ticks, count, kernel.input_size), np.float32)
    inputs[:, ::2] = np.sign(inputs[:, ::2])  # tasks of bits, as the bundled ones
    states = np.zeros((count, size), np.float32)
    slab, rows = np.zeros((2 * count, size), np.float32), range(count)
    for tick in range(ticks):
        slab[:count] = states
        outputs, finite = kernel.step(slab, rows, range(count, 2 * count), inputs[tick : tick + 1])
        with torch.inference_mode():
            both = artifact.tick(torch.from_numpy(inputs[tick : tick + 1]), torch.from_numpy(states))
        expected, after = (tensor.numpy() for tensor in both)
        by_row = np.sort(np.abs(slab[count:] - after).max(axis=1))[:judged]
        for what, apart, of in (
            ("outputs", np.abs(outputs - expected).max(), expected),
            ("states", by_row.max(), after),
        ):
            bound = TOLERANCE * max(1.0, float(np.abs(of).max()))
            if not apart <= bound or not all(finite):
                raise KernelError(
                    f"its {what} differ from TorchScript's by {apart:.3g} after {tick + 1} ticks; "
                    f"at most {bound:.3g} is allowed"
                )
        states = after
