"""Where tensors live: whether a device of that name is here."""

import torch


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
