"""A state as one row of 4-byte words, as a server keeps and stores it, whatever its tensors are.

A row is a float32 array [S]; where a field is of another dtype its bytes stand there, and nobody calculates with them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

# By their name: what NumPy keeps them as. It has no bfloat16, whose bits are the upper half of a float32's.
DTYPES: dict[str, "np.dtype[Any]"] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "bool": np.dtype("?"),
}
WORD = 4


@dataclass(frozen=True)
class TensorSpec:
    """What a model takes or gives at one timestep of one session."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype}; expected one of {', '.join(DTYPES)}")

    # Each is asked for with every chunk, and computed once.

    @cached_property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @cached_property
    def numpy(self) -> "np.dtype[Any]":
        """The dtype of an array of them."""
        return DTYPES[self.dtype]

    @cached_property
    def torch(self) -> torch.dtype:
        """The dtype of a tensor of them."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one timestep."""
        return self.size * self.numpy.itemsize

    @cached_property
    def is_floating(self) -> bool:
        return "float" in self.dtype

    def of_bytes(self, timesteps: Array) -> Array:
        """Timesteps [T, nbytes] of bytes as [T, *shape]; a view where they lie one behind the other."""
        return np.ascontiguousarray(timesteps).view(self.numpy).reshape(len(timesteps), *self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Field(TensorSpec):
    """One tensor of a state, for one session: where it lies in the row."""

    name: str = ""
    part: int = 0  # which of several of that name: a layer's, or a memory's
    offset: int = 0  # of its first word

    @cached_property
    def words(self) -> slice:
        """Where it lies in a row."""
        return slice(self.offset, self.offset - (-self.nbytes // WORD))

    def of(self, row: Array) -> Array:
        """The field in a row [S], as an array of its own shape: a view, but for bfloat16 a float32 copy."""
        stored = row[self.words].view(np.uint8)[: self.nbytes].view(self.numpy).reshape(self.shape)
        return stored if self.dtype != "bfloat16" else (stored.astype(np.uint32) << 16).view(np.float32)

    def of_rows(self, rows: Tensor) -> Tensor:
        """The field in rows [B, S] on any device: a view [B, *shape]."""
        words = rows[:, self.words]
        if self.dtype == "bool":
            return words.view(torch.uint8)[:, : self.nbytes].view(len(rows), *self.shape) != 0
        values = words if self.dtype == "float32" else words.view(self.torch)[:, : self.size]
        return values.view(len(rows), *self.shape)


class RowLayout:
    """Where each tensor of a session's state lies in its row of `size` words.

    What is the experience comes last: from `experience_offset` on, a reset of it puts back what `initial` [S] has.
    """

    def __init__(self, fields: Iterable[Field], experience_offset: int | None = None) -> None:
        placed, offset = [], 0
        for field in fields:
            # An 8-byte number lies at an even word, or torch can't view it.
            wide = field.numpy.itemsize > WORD
            offset += offset % 2 if wide else 0
            placed.append(Field(field.shape, field.dtype, field.name, field.part, offset))
            offset = placed[-1].words.stop
        self.fields = tuple(placed)
        self.size = max(1, offset + (offset % 2 if any(f.numpy.itemsize > WORD for f in placed) else 0))
        self.experience_offset: int | None = experience_offset
        self.initial = np.zeros(self.size, np.float32)
        self.names = tuple(dict.fromkeys(field.name for field in self.fields))
        self._checked = tuple(field for field in self.fields if field.is_floating)
        self._plain = len(self._checked) == len(self.fields) and {f.dtype for f in self.fields} <= {"float32"}

    def begin_with(self, initial: Array) -> None:
        """A new session has this row [S]. What isn't finite there may stay so."""
        self.initial = np.ascontiguousarray(initial, np.float32)
        self._checked = tuple(field for field in self._checked if np.isfinite(field.of(self.initial)).all())
        self._plain = self._plain and len(self._checked) == len(self.fields)

    def start_of(self, scope: str) -> int:
        """From where on a reset puts back what was initial: of scope "all", or "experience", which there must be."""
        if scope != "experience":
            return 0
        assert self.experience_offset is not None
        return self.experience_offset

    def array(self, row: Array, name: str) -> Array:
        """One array of a state [S], [parts, *shape]: parts are memories or layers, of most models one."""
        parts = [field.of(row) for field in self.fields if field.name == name]
        return parts[0][None] if len(parts) == 1 else np.stack(parts)

    def not_finite(self, row: Array) -> Field | None:
        """The first field of a row [S] that has a number which isn't finite, and may not; None if there is none."""
        return next((field for field in self._checked if not np.isfinite(field.of(row)).all()), None)

    def finite(self, rows: Tensor) -> list[bool]:
        """Whether rows [B, S] hold finite numbers only; may be False where only a sum overflows."""
        if self._plain:
            return rows.sum(dim=1).isfinite().tolist()  # a sum is finite only if all its terms are
        finite = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        for field in self._checked:
            finite &= field.of_rows(rows).reshape(len(rows), -1).isfinite().all(dim=1)
        return finite.tolist()

    def pack_fields(self, tensors: Iterable[Tensor], rows: Tensor) -> None:
        """Puts tensors [B, *shape], in the order of the fields, into rows [B, S]."""
        for field, tensor in zip(self.fields, tensors, strict=True):
            if field.dtype == "bool":
                rows[:, field.words].view(torch.uint8)[:, : field.nbytes] = tensor.reshape(len(rows), -1)
            else:
                words = rows[:, field.words]
                target = words if field.dtype == "float32" else words.view(field.torch)[:, : field.size]
                target.copy_(tensor.reshape(len(rows), -1))

    def unpack_fields(self, rows: Tensor) -> list[Tensor]:
        """The tensors of rows [B, S], in the order of the fields: views where that can be."""
        return [field.of_rows(rows) for field in self.fields]


Tick = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From inputs [T, B, *shape] and states [B, S], outputs [T, B, *shape] and the states after them; changes neither."""
