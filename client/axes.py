"""The axes of a DNC's arrays, under the letters of the model's legend.

N memory slots, W word size, R read heads, K write heads, M read modes, D hidden layers of the controller, H their size,
V = R x W; of sparse memories S slots that a head reads, Q links of a slot.
"""

from collections.abc import Mapping, Sequence
from typing import Any

AXES: Mapping[str, str] = {
    "memory": "NW",
    "link_matrix": "KNN",
    "precedence": "KN",
    "read_weights": "RN",
    "write_weights": "KN",
    "usage_vector": "N",
    # Of a sparse memory.
    "squared_norms": "N",
    "last_access": "N",
    "read_slots": "RS",
    "sparse_read_weights": "RS",
    "precedence_slots": "Q",
    "sparse_precedence": "Q",
    "previous_slots": "NQ",
    "sparse_links": "NQ",
    "next_slots": "NQ",
    "read_vectors": "V",
    "controller_hidden": "DH",
    "controller_cell": "DH",
    # The interface: what a timestep asked of memory.
    "allocation_gates": "K",
    "write_gates": "K",
    "free_gates": "R",
    "read_modes": "RM",
    "write_strengths": "K",
    "read_strengths": "R",
}


def has_dense_memory(config: Mapping[str, Any]) -> bool:
    """Whether a model's config is that of a DNC whose memory has the six fields of a dense one."""
    return bool(config) and config.get("memory", "dense") == "dense"


def described(name: str, shape: Sequence[int], config: Mapping[str, Any]) -> str:
    """Such as "[N, W] = [64, 16]"; L counts memories or layers. An axis of one, as of a sole head, is left out.

    Of a model that isn't a DNC, whose `config` is empty, the shape alone.
    """
    if not config or name not in AXES:
        return f"[{', '.join(map(str, shape))}]"
    letters = AXES[name] if len(shape) == len(AXES[name]) else f"L{AXES[name]}"
    axes = [(axis, size) for axis, size in zip(letters, shape, strict=True) if size > 1 or axis not in "LKRD"]
    return f"[{', '.join(axis for axis, _ in axes)}] = [{', '.join(str(size) for _, size in axes)}]"
