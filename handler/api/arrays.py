"""Arrays between the wire and numpy, checked before anything else happens to them."""

from typing import Any

import numpy as np

from dnc_serve.handler.arrays import Array
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.rows import TensorSpec
from dnc_serve.proto.dnc.v1 import dnc_pb2

_DTYPES: dict[int, np.dtype] = {
    dnc_pb2.DATA_TYPE_UNSPECIFIED: np.dtype("<f4"),
    dnc_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    dnc_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    dnc_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    dnc_pb2.DATA_TYPE_INT8: np.dtype("<i1"),
    dnc_pb2.DATA_TYPE_UINT8: np.dtype("<u1"),
    dnc_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    dnc_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    dnc_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    dnc_pb2.DATA_TYPE_BOOL: np.dtype("?"),
}
_NUMBERS: dict["np.dtype[Any]", Any] = {_DTYPES[number]: number for number in dnc_pb2.DataType.values() if number}


def decode_inputs(array: dnc_pb2.Array, spec: TensorSpec, max_timesteps: int) -> Array:
    """A chunk's inputs [T, *shape] in the model's dtype.

    Raises BAD_SHAPE, BAD_DTYPE, NOT_FINITE or CHUNK_TOO_LONG, each with what was expected and what came.
    """
    shape = tuple(array.shape)
    if not shape or shape[1:] != spec.shape:
        expected = f"[{', '.join(map(str, ('timesteps', *spec.shape)))}]"
        raise ServeError(
            "BAD_SHAPE", f"inputs have shape {list(shape)}, expected {expected}", expected=expected, got=list(shape)
        )
    if shape[0] == 0:
        raise ServeError(
            "BAD_SHAPE", "inputs have no timestep, expected at least 1", expected="at least 1 timestep", got=0
        )
    if shape[0] > max_timesteps:
        raise ServeError(
            "CHUNK_TOO_LONG",
            f"a chunk of {shape[0]} timesteps, expected at most {max_timesteps}: send it in several chunks",
            expected=f"at most {max_timesteps}",
            got=shape[0],
        )
    dtype = _DTYPES.get(array.dtype)
    if dtype is None:
        raise ServeError(
            "BAD_DTYPE",
            f"inputs have dtype {array.dtype}, expected one of {', '.join(dnc_pb2.DataType.keys()[1:])}",
            expected=dnc_pb2.DataType.Name(data_type(spec)),
            got=array.dtype,
        )
    expected_bytes = shape[0] * spec.size * dtype.itemsize
    if len(array.data) != expected_bytes:
        raise ServeError(
            "BAD_SHAPE",
            f"inputs of shape {list(shape)} and dtype {dtype.name} take {expected_bytes} bytes, got {len(array.data)}",
            expected=expected_bytes,
            got=len(array.data),
        )
    values = np.frombuffer(array.data, dtype).reshape(shape)
    if not spec.is_floating:
        return values if dtype == spec.numpy else _as_integers(values, spec)
    inputs = values
    if dtype != spec.numpy:
        with np.errstate(over="ignore"):
            inputs = values.astype(spec.numpy)
    if not (finite := np.isfinite(inputs)).all():
        timestep, *channel = (int(i) for i in np.argwhere(~finite)[0])
        where = ", ".join(map(str, channel))
        value = values[(timestep, *channel)]
        raise ServeError(
            "NOT_FINITE",
            f"input {value} at timestep {timestep}, channel {where}: expected finite {spec.dtype}",
            expected=f"finite {spec.dtype} values",
            got=value,
            timestep=timestep,
            channel=where,
        )
    return inputs


def _as_integers(values: Array, spec: TensorSpec) -> Array:
    """Of another dtype than the model's: as long as no number changes."""
    with np.errstate(invalid="ignore"):
        inputs = values.astype(spec.numpy)
    if not (same := inputs == values).all():
        value = values[tuple(np.argwhere(~same)[0])]
        raise ServeError(
            "BAD_DTYPE",
            f"input {value} of dtype {values.dtype.name}, expected numbers of {spec.dtype}",
            expected=dnc_pb2.DataType.Name(data_type(spec)),
            got=value,
        )
    return inputs


def data_type(spec: TensorSpec) -> dnc_pb2.DataType:
    """The dtype as the contract names it."""
    number: dnc_pb2.DataType = _NUMBERS[spec.numpy]
    return number


def decode_array(array: dnc_pb2.Array) -> Array:
    """An array that `encode_array` made."""
    return np.frombuffer(array.data, _DTYPES[array.dtype]).reshape(tuple(array.shape))


def encode_array(values: Array) -> dnc_pb2.Array:
    """An array as it goes over the wire: little-endian, row-major."""
    return dnc_pb2.Array(shape=values.shape, data=np.ascontiguousarray(values).tobytes(), dtype=wire_type(values))


def wire_type(values: Array) -> dnc_pb2.DataType:
    """The dtype of an array as the contract names it."""
    number: dnc_pb2.DataType = _NUMBERS[values.dtype]
    return number
