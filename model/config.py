"""The sizes and options of a Differentiable Neural Computer."""

import difflib
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

import numpy as np

CHOICES = {
    "memory": ("dense", "sparse", "sparse_links"),
    "rnn_type": ("lstm", "gru", "rnn"),
    "nonlinearity": ("tanh", "relu"),
    "key_activation": ("linear", "tanh"),
    "cosine": ("deepmind", "dnc_package"),
    "allocation_order": ("nonusage", "usage"),
    "clip_scope": ("all", "controller_output"),
    "read_feedback": ("timestep", "call"),
}
SIZES = (
    "input_size",
    "hidden_size",
    "output_size",
    "num_layers",
    "num_hidden_layers",
    "nr_cells",
    "read_heads",
    "write_heads",
    "cell_size",
    "sparse_reads",
    "temporal_reads",
)
# A float32 holds the number of each.
MOST_SPARSE_CELLS = 1 << 24
FLAGS = ("bias", "independent_linears", "share_memory", "stop_usage_gradient")


@dataclass(frozen=True, kw_only=True)
class DNCConfig:
    """Everything that decides what a DNC computes, apart from its weights; checked when made.

    `memory` chooses how it is accessed: `dense`, all slots at each timestep; `sparse`, a sparse access memory, which
    reads `sparse_reads` slots a head and writes where it read before, or the slot that was left alone longest; or
    `sparse_links`, the same with links from slot to slot, at most `temporal_reads` of each. A sparse memory has one
    write head, and neither usage nor erase vectors: what is said of those below doesn't concern it.

    The last six fields choose between DeepMind's maths (the defaults) and that of the `dnc` package of PyPI:

    - `key_activation`: of the keys and write vectors, before the memory sees them.
    - `cosine`: `deepmind` smooths each norm with 1e-6 under its root, `dnc_package` takes plain norms.
    - `allocation_order`: slots are sorted by their rounded nonusage, stably, or by usage, ties undefined.
    - `clip_scope`: `all` clips controller output, hidden state, cell state and final output to [-clip, clip].
    - `stop_usage_gradient`: whether usage takes the previous write weightings as constants.
    - `read_feedback`: `call` feeds read vectors back only between calls of `forward`, not at each timestep, in training
      and evaluation alike; only `timestep` can be exported and served.

    Raises ValueError (TypeError for a wrong type) that names the field, its value and the allowed range.
    """

    input_size: int
    hidden_size: int
    output_size: int | None = None  # None: input_size
    rnn_type: str = "lstm"
    num_layers: int = 1
    num_hidden_layers: int = 2
    bias: bool = True
    dropout: float = 0.0
    nr_cells: int = 5
    read_heads: int = 2
    write_heads: int = 1
    cell_size: int = 10
    nonlinearity: str = "tanh"
    independent_linears: bool = False
    share_memory: bool = True
    clip: float = 20.0  # 0: nothing is clipped
    memory: str = "dense"
    sparse_reads: int = 4
    temporal_reads: int = 8
    key_activation: str = "linear"
    cosine: str = "deepmind"
    allocation_order: str = "nonusage"
    clip_scope: str = "all"
    stop_usage_gradient: bool = True
    read_feedback: str = "timestep"

    def __post_init__(self) -> None:
        if self.output_size is None:
            object.__setattr__(self, "output_size", self.input_size)
        for name in SIZES:
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        for name in FLAGS:
            object.__setattr__(self, name, as_flag(name, getattr(self, name)))
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            lowered = value.lower() if isinstance(value, str) else value
            if lowered not in allowed:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
            object.__setattr__(self, name, lowered)
        object.__setattr__(self, "dropout", _number("dropout", self.dropout, below=1.0))
        object.__setattr__(self, "clip", _number("clip", self.clip))
        if self.is_sparse:
            if self.write_heads != 1:
                raise ValueError(f"write_heads is {self.write_heads}; expected 1: a sparse memory has one write head")
            if self.sparse_reads > self.nr_cells:
                raise ValueError(
                    f"sparse_reads is {self.sparse_reads}; expected at most nr_cells, which is {self.nr_cells}"
                )
            if self.nr_cells > MOST_SPARSE_CELLS:
                raise ValueError(
                    f"nr_cells is {self.nr_cells}; expected at most {MOST_SPARSE_CELLS} of a sparse memory"
                )

    @property
    def outputs(self) -> int:
        """O: the size of an output vector."""
        assert self.output_size is not None, "resolved when the config was made"
        return self.output_size

    @property
    def num_memories(self) -> int:
        """How many memories a session has: one that all layers share, or one for each layer."""
        return 1 if self.share_memory else self.num_layers

    @property
    def is_sparse(self) -> bool:
        """Whether a timestep touches a few slots only."""
        return self.memory != "dense"

    @property
    def read_modes(self) -> int:
        """M: backward and forward along the links of each write head, and content; 1 where there are no links."""
        return 1 if self.memory == "sparse" else 1 + 2 * self.write_heads

    @property
    def read_size(self) -> int:
        """The size of a timestep's read vectors, all heads together."""
        return self.read_heads * self.cell_size

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DNCConfig":
        """The config that `to_dict` described. Raises ValueError if a field lacks, or is one too many."""
        if not isinstance(values, dict):
            raise TypeError(f"config is {values!r}; expected a dict of a DNCConfig's fields")
        known = [field.name for field in fields(cls)]
        unknown, missing = unknown_names(values, known), sorted({"input_size", "hidden_size"} - set(values))
        if unknown or missing:
            lacks = [f"lacks {', '.join(missing)}"] if missing else []
            raise ValueError(f"config {' and '.join([*unknown, *lacks])}; its fields are {', '.join(known)}")
        return cls(**values)


def unknown_names(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """`has no NAME` for each name that is not known, with what may have been meant."""
    found = []
    for name in sorted(set(names) - set(known)):
        close = difflib.get_close_matches(name, known, n=1)
        found.append(f"has no {name}" + (f" (did you mean {close[0]}?)" if close else ""))
    return found


def as_flag(name: str, value: object) -> bool:
    """A bool of Python's or NumPy's. Raises TypeError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}; expected True or False")
    return bool(value)


def as_whole(name: str, value: object, expected: str) -> int:
    """A whole number of any kind: Python's, NumPy's, a tensor with one. Raises TypeError, which says what is expected.

    JSON and TorchScript know Python's only.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected {expected}") from None


def _size(name: str, value: object) -> int:
    size = as_whole(name, value, "a whole number of at least 1")
    if size < 1:
        raise ValueError(f"{name} is {size}; expected at least 1")
    return size


def _number(name: str, value: object, below: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; expected a number in [0, {below})")
    number = float(value)
    if not 0 <= number < below:
        raise ValueError(f"{name} is {value}; expected a number in [0, {below})")
    return number
