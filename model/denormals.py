"""Denormal numbers as zeros, for as long as it takes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
