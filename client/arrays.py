"""Arrays between numpy and the wire."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnc_serve.client.errors import BadDtype, BadShape, DncError, Internal
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

Float32 = NDArray[np.float32]
Array = NDArray[Any]

DTYPES: dict[int, "np.dtype[Any]"] = {
    pb.DATA_TYPE_UNSPECIFIED: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_INT8: np.dtype("<i1"),
    pb.DATA_TYPE_UINT8: np.dtype("<u1"),
    pb.DATA_TYPE_INT16: np.dtype("<i2"),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
    pb.DATA_TYPE_INT64: np.dtype("<i8"),
    pb.DATA_TYPE_BOOL: np.dtype("?"),
}
_NUMBERS: dict["np.dtype[Any]", Any] = {
    DTYPES[number]: number for number in pb.DataType.values() if number and number in DTYPES
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model takes or gives at one timestep."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def numpy(self) -> "np.dtype[Any]":
        """The dtype of an array of them, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def nbytes(self) -> int:
        """Bytes of one timestep."""
        return self.size * self.numpy.itemsize

    @property
    def of_chunk(self) -> str:
        """The shape of a chunk, for messages."""
        return f"[{', '.join(map(str, ('timesteps', *self.shape)))}]"

    @classmethod
    def from_wire(cls, message: pb.TensorSpec) -> "TensorSpec":
        return cls(tuple(message.shape), DTYPES[message.data_type].name)


def as_inputs(values: Any, spec: TensorSpec) -> Array:
    """Inputs [T, *shape] in the model's dtype, from anything that numpy takes and from tensors on any device.

    Raises BadShape or BadDtype; values that are not finite are left for the server to refuse.
    """
    expected = spec.of_chunk
    try:
        array = np.asarray(_plain(values))
    except DncError:
        raise
    except ValueError as exc:
        if isinstance(values, list | tuple):
            raise BadShape(f"inputs are ragged, expected {expected}: {exc}") from exc
        raise _unusable(values, exc) from exc
    except Exception as exc:  # whatever an object that offers an array may raise
        raise _unusable(values, exc) from exc
    if array.ndim == 0 or array.shape[1:] != spec.shape or not len(array):
        kind = "" if isinstance(values, np.ndarray | list | tuple) else f" of type {type(values).__name__}"
        raise BadShape(
            f"inputs{kind} have shape {list(array.shape)}, expected {expected} with at least 1 timestep",
            metadata={"expected": expected, "got": str(list(array.shape))},
        )
    # What is no number of numpy's own may still be one, as bfloat16 of ml_dtypes.
    if array.dtype.kind not in "fiub" and not (array.dtype.kind == "V" and np.can_cast(array.dtype, np.float32)):
        raise BadDtype(
            f"inputs have dtype {array.dtype}, expected real numbers",
            metadata={"expected": spec.dtype, "got": str(array.dtype)},
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused as such
        inputs = np.ascontiguousarray(array, spec.numpy)
    if spec.numpy.kind != "f" and array.dtype != spec.numpy and not (same := inputs == array).all():
        value = array[tuple(np.argwhere(~same)[0])]
        raise BadDtype(
            f"input {value} of dtype {array.dtype}, expected numbers of {spec.dtype}",
            metadata={"expected": spec.dtype, "got": str(value)},
        )
    return inputs


def _plain(values: Any) -> Any:
    """What numpy converts without losing anything: tensors as float32, and nothing masked. Raises BadDtype."""
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if values is np.ma.masked or (isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values)):
        raise BadDtype(
            "inputs have masked elements, expected a number everywhere: fill them first",
            metadata={"expected": "float32", "got": "masked"},
        )
    if not hasattr(values, "detach"):
        return values
    tensor = values.detach().cpu().resolve_neg()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _unusable(values: Any, cause: Exception) -> BadDtype:
    return BadDtype(
        f"inputs of type {type(values).__name__} can't be converted, expected real numbers: {cause}",
        metadata={"expected": "float32", "got": type(values).__name__},
    )


def to_wire(array: Array) -> pb.Array:
    """A contiguous array as it goes over the wire."""
    return pb.Array(shape=array.shape, data=array.tobytes(), dtype=_NUMBERS[array.dtype])


def from_wire(array: pb.Array) -> Array:
    """A writable copy of an array of the server."""
    return np.frombuffer(array.data, DTYPES[array.dtype]).reshape(tuple(array.shape)).copy()


def joined(arrays: Sequence[pb.Array]) -> Array:
    """Arrays of the server, one after the other along their first axis."""
    return from_wire(arrays[0]) if len(arrays) == 1 else np.concatenate([from_wire(array) for array in arrays])


def assembled(parts: Iterable[pb.DumpPart]) -> dict[str, Array]:
    """The arrays of a dump from its parts; a part without a name says that there is none."""
    arrays: dict[str, Array] = {}
    complete = False
    for part in parts:
        complete = part.last
        if not part.name:
            continue
        if part.name not in arrays:
            arrays[part.name] = np.empty(tuple(part.shape), DTYPES[part.data_type])
        flat = arrays[part.name].reshape(-1).view(np.uint8)
        flat[part.offset : part.offset + len(part.data)] = np.frombuffer(part.data, np.uint8)
    if not complete:
        raise Internal("the dump ended before its last part")
    return arrays
