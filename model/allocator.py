"""How the C library gives memory back to the system."""

import ctypes
import os

# glibc's names for them, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST = (1 << 31) - 1


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
