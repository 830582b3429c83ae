"""Arrays between the wire and numpy, checked before anything else happens to them."""

import numpy as np
from numpy.typing import NDArray

from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2

Float32 = NDArray[np.float32]

_DTYPES: dict[int, np.dtype] = {
    dnc_pb2.DATA_TYPE_UNSPECIFIED: np.dtype("<f4"),
    dnc_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    dnc_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    dnc_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    dnc_pb2.DATA_TYPE_INT8: np.dtype("<i1"),
    dnc_pb2.DATA_TYPE_UINT8: np.dtype("<u1"),
    dnc_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    dnc_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
}


def decode_inputs(array: dnc_pb2.Array, input_size: int, max_timesteps: int) -> Float32:
    """A chunk's inputs [T, I] as float32.

    Raises BAD_SHAPE, BAD_DTYPE, NOT_FINITE or CHUNK_TOO_LONG, each with what was expected and what came.
    """
    shape = tuple(array.shape)
    if len(shape) != 2 or shape[1] != input_size:
        raise ServeError(
            "BAD_SHAPE",
            f"inputs have shape {list(shape)}, expected [timesteps, {input_size}]",
            expected=f"[timesteps, {input_size}]",
            got=list(shape),
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
            expected="DATA_TYPE_FLOAT32",
            got=array.dtype,
        )
    expected_bytes = shape[0] * shape[1] * dtype.itemsize
    if len(array.data) != expected_bytes:
        raise ServeError(
            "BAD_SHAPE",
            f"inputs of shape {list(shape)} and dtype {dtype.name} take {expected_bytes} bytes, got {len(array.data)}",
            expected=expected_bytes,
            got=len(array.data),
        )
    values = np.frombuffer(array.data, dtype).reshape(shape)
    if dtype == np.float32:
        inputs: Float32 = values
    else:
        with np.errstate(over="ignore"):
            inputs = values.astype(np.float32)
    if not (finite := np.isfinite(inputs)).all():
        timestep, channel = (int(i) for i in np.argwhere(~finite)[0])
        raise ServeError(
            "NOT_FINITE",
            f"input {values[timestep, channel]} at timestep {timestep}, channel {channel}: expected finite float32",
            expected="finite float32 values",
            got=values[timestep, channel],
            timestep=timestep,
            channel=channel,
        )
    return inputs


def encode_array(values: Float32) -> dnc_pb2.Array:
    """An array as it goes over the wire: float32, little-endian, row-major."""
    return dnc_pb2.Array(
        shape=values.shape, data=np.ascontiguousarray(values, "<f4").tobytes(), dtype=dnc_pb2.DATA_TYPE_FLOAT32
    )
