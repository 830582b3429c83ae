"""The kind of processor, as far as the rounding of torch's code depends on it."""

import json
import platform
from pathlib import Path

import torch


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
