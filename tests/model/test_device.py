"""In a process of its own: the setting stays."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from dnc_serve.model.device import keep_freed_memory

def faults():
    torch.zeros(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(12 << 20)  # 48 MiB, given back at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
print(keep_freed_memory())
torch.ones(12 << 20)
print(given_back, faults())
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc")
def test_a_large_tensors_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    possible, counts = done.stdout.splitlines()
    given_back, kept = map(int, counts.split())
    assert possible == "True"
    assert kept < given_back / 4, "pages were handed out anew"
