"""Arrays between numpy and the wire."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dnc_serve.client.errors import BadDtype, BadShape
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

Float32 = NDArray[np.float32]


def as_inputs(values: Any, input_size: int) -> Float32:
    """Inputs [T, I] as float32, from anything that numpy takes and from tensors on any device.

    Raises BadShape or BadDtype; values that are not finite are left for the server to refuse.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except ValueError as exc:
        raise BadShape(f"inputs are ragged, expected [timesteps, {input_size}]: {exc}") from exc
    if array.ndim != 2 or array.shape[1] != input_size or not len(array):
        raise BadShape(
            f"inputs have shape {list(array.shape)}, expected [timesteps, {input_size}] with at least 1 timestep",
            metadata={"expected": f"[timesteps, {input_size}]", "got": str(list(array.shape))},
        )
    if array.dtype.kind not in "fiub":
        raise BadDtype(
            f"inputs have dtype {array.dtype}, expected real numbers",
            metadata={"expected": "float32", "got": str(array.dtype)},
        )
    with np.errstate(over="ignore"):  # what becomes infinite is refused as such
        return np.ascontiguousarray(array, "<f4")


def to_wire(array: Float32) -> pb.Array:
    """A contiguous float32 array as it goes over the wire."""
    return pb.Array(shape=array.shape, data=array.tobytes(), dtype=pb.DATA_TYPE_FLOAT32)


def from_wire(array: pb.Array) -> Float32:
    """A writable copy of an array of the server."""
    return cast(Float32, np.frombuffer(array.data, "<f4").reshape(tuple(array.shape)).copy())
