"""The axes of a session's arrays, under the letters of the model's legend.

N memory slots, W word size, R read heads, K write heads, M read modes, D hidden layers of the controller, H their size.
"""

from collections.abc import Mapping
from typing import Any

AXES: Mapping[str, str] = {
    "memory": "NW",
    "link_matrix": "KNN",
    "precedence": "KN",
    "read_weights": "RN",
    "write_weights": "KN",
    "usage_vector": "N",
    "read_vectors": "RW",
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
_SETTINGS = {
    "N": "nr_cells",
    "W": "cell_size",
    "R": "read_heads",
    "K": "write_heads",
    "D": "num_hidden_layers",
    "H": "hidden_size",
}


def shape_of(name: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of one memory's, or layer's, array, which a dump holds flattened. Raises KeyError for other names."""
    sizes = {axis: int(config[setting]) for axis, setting in _SETTINGS.items()}
    sizes["M"] = 2 * sizes["K"] + 1  # backward and forward along each write head's links, and by content
    return tuple(sizes[axis] for axis in AXES[name])


def described(name: str, config: Mapping[str, Any], copies: int = 1) -> str:
    """Such as "[N, W] = [64, 16]"; L counts memories or layers. An axis of one, as of a sole head, is left out."""
    axes = [
        (axis, size)
        for axis, size in zip(f"L{AXES[name]}", (copies, *shape_of(name, config)), strict=True)
        if size > 1 or axis not in "LKRD"
    ]
    return f"[{', '.join(axis for axis, _ in axes)}] = [{', '.join(str(size) for _, size in axes)}]"
