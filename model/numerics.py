"""What the bits of a result depend on beside the weights: environment, processor, denormal numbers, rows at once."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

# A kernel is chosen by shape: fewer than eight rows may be multiplied in another order than more. All else in a DNC is
# done for each row by itself. So where bits must not depend on a row's company, few rows are filled up with zeros for
# the products with weights, and for nothing else: the memory, which is most of the work, stays as small as it is.
LEAST_ROWS = 8
# Instructions, kernels and precisions of the libraries that compute, and of the C library's mathematics.
_FAMILIES = (
    "ATEN_", "BLIS_", "CUBLAS", "CUDNN_", "DNNL_", "GLIBC_TUNABLES", "MKL_", "NUMBA_", "NVIDIA_TF32", "ONEDNN_",
    "OPENBLAS_", "PYTORCH_", "ROCBLAS_", "TORCH_",
)  # fmt: skip
# How many threads, which torch is told anyway; what is printed, and where things lie.
_WITHOUT_EFFECT = ("NUM_THREADS", "VERBOSE", "LOGS", "ALLOC_CONF", "_DIR", "_PATH", "_HOME")


def numeric_environment() -> dict[str, str]:
    """The variables that are set, by name. There may be others: a probe of the bits themselves tells the rest."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_FAMILIES) and not name.endswith(_WITHOUT_EFFECT)
    }


def processor(device: torch.device) -> str:
    """In words, which are the same where torch chooses the same code."""
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


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Products of weightings make denormal numbers, with which a processor is many times slower.

    The setting is the thread's, and is put back to what it was.
    """
    before = flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def flushes_denormals() -> bool:
    """Whether this thread does; torch sets it and doesn't tell."""
    return not bool(torch.full((), torch.finfo(torch.float32).tiny) / 2)


def filled_up(rows: Tensor, least: int) -> Tensor:
    """[..., B, F] with rows of zeros below, until there are `least`."""
    return pad(rows, [0, 0, 0, least - rows.size(-2)])
