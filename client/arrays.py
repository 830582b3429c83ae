"""Arrays between numpy and the wire."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dnc_serve.client.errors import BadDtype, BadShape, DncError, Internal
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

Float32 = NDArray[np.float32]


def as_inputs(values: Any, input_size: int) -> Float32:
    """Inputs [T, I] as float32, from anything that numpy takes and from tensors on any device.

    Raises BadShape or BadDtype; values that are not finite are left for the server to refuse.
    """
    try:
        array = np.asarray(_plain(values))
    except DncError:
        raise
    except ValueError as exc:
        if isinstance(values, list | tuple):
            raise BadShape(f"inputs are ragged, expected [timesteps, {input_size}]: {exc}") from exc
        raise _unusable(values, exc) from exc
    except Exception as exc:  # whatever an object that offers an array may raise
        raise _unusable(values, exc) from exc
    if array.ndim != 2 or array.shape[1] != input_size or not len(array):
        kind = "" if isinstance(values, np.ndarray | list | tuple) else f" of type {type(values).__name__}"
        raise BadShape(
            f"inputs{kind} have shape {list(array.shape)}, expected [timesteps, {input_size}] with at least 1 timestep",
            metadata={"expected": f"[timesteps, {input_size}]", "got": str(list(array.shape))},
        )
    # What is no number of numpy's own may still be one, as bfloat16 of ml_dtypes.
    if array.dtype.kind not in "fiub" and not (array.dtype.kind == "V" and np.can_cast(array.dtype, np.float32)):
        raise BadDtype(
            f"inputs have dtype {array.dtype}, expected real numbers",
            metadata={"expected": "float32", "got": str(array.dtype)},
        )
    with np.errstate(over="ignore"):  # what becomes infinite is refused as such
        return np.ascontiguousarray(array, "<f4")


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


def to_wire(array: Float32) -> pb.Array:
    """A contiguous float32 array as it goes over the wire."""
    return pb.Array(shape=array.shape, data=array.tobytes(), dtype=pb.DATA_TYPE_FLOAT32)


def from_wire(array: pb.Array) -> Float32:
    """A writable copy of an array of the server."""
    return cast(Float32, np.frombuffer(array.data, "<f4").reshape(tuple(array.shape)).copy())


def joined(arrays: Sequence[pb.Array]) -> Float32:
    """Arrays of the server, one after the other along their first axis."""
    return from_wire(arrays[0]) if len(arrays) == 1 else np.concatenate([from_wire(array) for array in arrays])


def assembled(parts: Iterable[pb.DumpPart]) -> dict[str, Float32]:
    """The arrays of a dump from its parts; a part without a name says that there is none."""
    arrays: dict[str, Float32] = {}
    complete = False
    for part in parts:
        complete = part.last
        if not part.name:
            continue
        if part.name not in arrays:
            arrays[part.name] = np.empty(tuple(part.shape), "<f4")
        flat = arrays[part.name].reshape(-1).view(np.uint8)
        flat[part.offset : part.offset + len(part.data)] = np.frombuffer(part.data, np.uint8)
    if not complete:
        raise Internal("the dump ended before its last part")
    return arrays
