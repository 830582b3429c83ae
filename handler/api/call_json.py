"""A `Call` from JSON, and a `CallResult` as JSON, for people with `curl`.

It is protobuf's JSON with field names as in the .proto file, and two reliefs. Arrays are nested lists. In a request,
the message that a call wraps may stand in its place: `{"step": {"session_id": "s", "inputs": [[0, 1]]}}`, likewise
`reset_session` and `dump_memory`. Positions are numbers; an incarnation is a string, because it takes 64 bits; bytes
are Base64.
"""

import base64
import json
import math
from typing import Any

import numpy as np
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2  # noqa: F401  the details of a status are written by their types
from google.rpc.status_pb2 import Status

from dnc_serve.handler.api.arrays import decode_array
from dnc_serve.handler.arrays import Array
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

# Reading JSON holds up the whole process, the streaming endpoint with it: within these bounds for about 10 ms at most.
MAX_BYTES = 4 << 20
MAX_VALUES = 1 << 16  # numbers of a chunk, and all else
MAX_VALUES_BESIDE_INPUTS = 1 << 12  # what becomes protobuf one by one
STEPS = ("step", "step_with_state")  # the calls that hold a chunk
WRAPPED = {"step": "chunk", "reset_session": "reset", "dump_memory": "dump"}
_DTYPES = {
    np.dtype(np.float64): pb.DATA_TYPE_FLOAT64,
    np.dtype(np.int64): pb.DATA_TYPE_INT64,
    np.dtype(np.bool_): pb.DATA_TYPE_BOOL,
}


def call_from_json(payload: Any) -> pb.Call:
    """A call from JSON bytes, or from what they stand for. Raises BAD_REQUEST, BAD_SHAPE, BAD_DTYPE."""
    fields, values = object_from_json(payload) if isinstance(payload, bytes) else (payload, 0)
    return call_of(fields, values)


def object_from_json(payload: bytes) -> tuple[dict[str, Any], int]:
    """An object within the bounds, and how many values it has at most. Raises BAD_REQUEST."""
    values = counted_values(payload)
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise ServeError("BAD_REQUEST", f"not JSON: {exc}") from exc
    if not isinstance(fields, dict):
        raise ServeError("BAD_REQUEST", f"JSON of type {type(fields).__name__}, expected an object")
    return fields, values


def call_of(fields: Any, values: int = 0) -> pb.Call:
    """A call from an object that has so many values. Raises BAD_REQUEST, BAD_SHAPE, BAD_DTYPE."""
    if not isinstance(fields, dict):
        raise ServeError("BAD_REQUEST", f"JSON of type {type(fields).__name__}, expected an object with one call")
    fields = {name: _unwrapped(name, value) for name, value in fields.items()}
    inputs = _taken_inputs(fields)
    beside = values - (0 if inputs is None else math.prod(inputs.shape))
    if beside > MAX_VALUES_BESIDE_INPUTS:
        raise _too_many("values beside a chunk's inputs", beside, MAX_VALUES_BESIDE_INPUTS)
    try:
        call = json_format.ParseDict(fields, pb.Call())
    except (json_format.ParseError, RecursionError) as exc:
        raise ServeError("BAD_REQUEST", f"not a call: {' '.join(str(exc).split())}") from exc
    if inputs is not None:
        getattr(call, call.WhichOneof("call") or "").chunk.inputs.CopyFrom(inputs)
    return call


def to_json(message: Message) -> bytes:
    """A message, every field of what was asked for in it, zeros included."""
    return json.dumps(_plain(message), separators=(",", ":"), allow_nan=False).encode()


def counted_values(payload: bytes) -> int:
    """How many values JSON has at most, by its commas; raises BAD_REQUEST for more than is read here."""
    if len(payload) > MAX_BYTES:
        raise _too_many("bytes", len(payload), MAX_BYTES)
    values = payload.count(b",") + 1
    if values > MAX_VALUES:
        raise _too_many("values", values, MAX_VALUES)
    return values


def _too_many(what: str, got: int, at_most: int) -> ServeError:
    return ServeError(
        "BAD_REQUEST",
        f"JSON of {got} {what}, expected at most {at_most}: send shorter chunks, or protobuf",
        expected=f"at most {at_most} {what}",
        got=got,
    )


def _unwrapped(name: str, value: Any) -> Any:
    """The short form of a call as the whole one."""
    inner = WRAPPED.get(name)
    if inner is None or not isinstance(value, dict) or inner in value:
        return value
    return {inner: value}


def _taken_inputs(fields: dict[str, Any]) -> pb.Array | None:
    """Takes nested lists out of the chunk of a call, as the array that they stand for."""
    name = next((name for name in STEPS if name in fields), "")
    match fields.get(name):
        case {"chunk": {"inputs": list(rows), **chunk}, **step}:
            fields[name] = {**step, "chunk": chunk}
        case _:
            return None
    try:
        values = np.array(rows)
    except (ValueError, OverflowError, RecursionError) as exc:
        raise ServeError(
            "BAD_SHAPE", "inputs are lists of different lengths, expected one list of numbers for each timestep"
        ) from exc
    if values.size == 0:
        values = values.astype(np.float64)
    dtype = _DTYPES.get(values.dtype)
    if dtype is None:
        raise ServeError(
            "BAD_DTYPE",
            f"inputs hold values of type {values.dtype.name}, expected numbers",
            expected="numbers",
            got=values.dtype.name,
        )
    return pb.Array(shape=values.shape, data=values.astype(values.dtype.newbyteorder("<")).tobytes(), dtype=dtype)


def _plain(message: Message) -> Any:
    """A message as what `json` can write."""
    match message:
        case pb.Array():
            return _plain_array(decode_array(message))
        case Timestamp():
            return message.ToJsonString()
        case Status():
            return json_format.MessageToDict(message)
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if value:
                plain[field.name] = {key: _plain(value[key]) for key in value}
        elif field.is_repeated:
            plain[field.name] = [_plain_value(field, item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            plain[field.name] = _plain_value(field, value)
    return plain


def _plain_array(array: Array) -> Any:
    """Nested lists; what isn't finite, as a state may begin with, is a string, as protobuf's own JSON has it."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    names = {np.inf: "Infinity", -np.inf: "-Infinity"}
    flat = [value if np.isfinite(value) else names.get(value, "NaN") for value in array.ravel().tolist()]
    return np.array(flat, object).reshape(array.shape).tolist()


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return _plain(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    if field.type == FieldDescriptor.TYPE_FIXED64:
        return str(value)
    return value
