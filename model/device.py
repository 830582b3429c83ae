"""Where tensors live: whether a device of that name is here, and how the C library keeps memory that was freed."""

import ctypes
import os

import torch

# glibc's names for them, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST = (1 << 31) - 1


class DeviceMissing(ValueError):
    """The device can't be used on this machine; the message says why, and what can be."""


def check_device(name: torch.device | str) -> None:
    """Raises DeviceMissing."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as exc:  # an assertion, if this torch has no CUDA at all
        there = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
        raise DeviceMissing(
            f"device is {str(name)!r}; expected one that torch {torch.__version__} can use here: "
            f"{', '.join(['cpu', *there])} ({_first_sentence(exc)})"
        ) from exc


def _first_sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]


def keep_freed_memory() -> bool:
    """Has this process keep what it frees, for the next tensor of that size; says whether it could: glibc can.

    Else glibc gives blocks of more than 32 MiB back to the system at once, and smaller ones when they lie at the end. A
    tensor of that size then costs more for its pages, which the system hands out anew and zeroed, than for what is
    computed in it. The process stays as large as it ever was, and the setting can't be taken back: it is for programs
    to make, not for libraries.
    """
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, MOST)) and bool(mallopt(M_TRIM_THRESHOLD, MOST))
