"""The bytes of records and snapshots: what the journal writes and believes again later.

Both carry a CRC-32 over their content and over whose they are, so that a flipped bit, a cut, or a row that strayed to
another session is noticed. Layout (little-endian): crc32 u32, then a header, then the payload.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.store.contract import Record, Snapshot

RECORD_VERSION = 2
SNAPSHOT_VERSION = 1
_CRC = struct.Struct("<I")
# incarnation, ordinal, position, experience: before the session's id, whose a content is
_IDENTITY = struct.Struct("<QQQQ")
# version, kind, timesteps, bytes of inputs and of outputs a timestep, writer id, fingerprint length
_RECORD = struct.Struct("<BBIIIQB")
# version, fingerprint length, number of floats
_SNAPSHOT = struct.Struct("<BBQ")
# Of a record, by its kind: what was reset before its chunk, or without one; or that the session came to another model.
MOVED = "model"
_RESETS = ("", "experience", "experience", "all", MOVED)
_ALONE = {reset: kind for kind, reset in enumerate(_RESETS) if kind > 1}  # without timesteps


class Damaged(Exception):
    """A record or snapshot is not what was written."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A decoded record: inputs and outputs are empty for a reset."""

    ordinal: int
    position: int  # after it
    experience: int  # after it
    reset: str  # "", "experience" or "all": what came first; MOVED: from here on another model computes the session
    inputs: Array  # [T, bytes]
    outputs: Array  # [T, bytes]
    fingerprint: str
    writer_id: int

    @property
    def start(self) -> int:
        return self.position - len(self.inputs)

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes that go in and come out at each timestep."""
        return self.inputs.shape[1], self.outputs.shape[1]


def _crc(
    session_id: str, incarnation: int, ordinal: int, position: int, experience: int, content: bytes | memoryview
) -> bytes:
    identity = _IDENTITY.pack(incarnation, ordinal, position, experience) + session_id.encode()
    return _CRC.pack(zlib.crc32(content, zlib.crc32(identity)))


def encode_record(
    session_id: str,
    incarnation: int,
    ordinal: int,
    position: int,
    experience: int,
    at: float,
    fingerprint: str,
    inputs: Array | None,
    outputs: Array | None,
    reset: str,
    writer_id: int,
) -> Record:
    """The record of a chunk (inputs and outputs [T, *shape], perhaps after a reset), or of a reset or MOVED (None)."""
    if inputs is None or outputs is None:
        kind, timesteps, input_size, output_size, arrays = _ALONE[reset], 0, 0, 0, b""
    else:
        timesteps = len(inputs)
        input_size, output_size = inputs.nbytes // timesteps, outputs.nbytes // timesteps
        kind, arrays = 1 if reset else 0, inputs.tobytes() + outputs.tobytes()
    mark = fingerprint.encode()
    header = _RECORD.pack(RECORD_VERSION, kind, timesteps, input_size, output_size, writer_id, len(mark))
    content = header + mark + arrays
    crc = _crc(session_id, incarnation, ordinal, position, experience, content)
    return Record(session_id, incarnation, ordinal, position, experience, at, crc + content)


def decode_record(record: Record) -> Operation:
    """Raises `Damaged` unless the record is exactly what was written."""
    payload = _checked(record, record.body)
    try:
        if payload[0] != RECORD_VERSION:
            raise Damaged(f"record {record.ordinal} has version {payload[0]}, expected {RECORD_VERSION}")
        _, kind, timesteps, input_size, output_size, writer_id, mark_length = _RECORD.unpack_from(payload)
        start = _RECORD.size + mark_length
        fingerprint = bytes(payload[_RECORD.size : start]).decode()
        values = np.frombuffer(payload, np.uint8, offset=start)
        inputs, outputs = values[: timesteps * input_size], values[timesteps * input_size :]
        return Operation(
            ordinal=record.ordinal,
            position=record.position,
            experience=record.experience,
            reset=_RESETS[kind],
            inputs=inputs.reshape(timesteps, input_size),
            outputs=outputs.reshape(timesteps, output_size),
            fingerprint=fingerprint,
            writer_id=writer_id,
        )
    except (struct.error, ValueError, IndexError) as exc:
        raise Damaged(f"record {record.ordinal} can't be read: {exc}") from exc


def encode_snapshot(
    session_id: str,
    incarnation: int,
    ordinal: int,
    position: int,
    experience: int,
    at: float,
    fingerprint: str,
    state: Float32,
) -> Snapshot:
    """A snapshot of a packed state [S]."""
    mark = fingerprint.encode()
    content = _SNAPSHOT.pack(SNAPSHOT_VERSION, len(mark), state.size) + mark + state.tobytes()
    crc = _crc(session_id, incarnation, ordinal, position, experience, content)
    return Snapshot(session_id, incarnation, ordinal, position, experience, at, crc + content)


def decode_snapshot(snapshot: Snapshot) -> tuple[Float32, str]:
    """The state [S], writable, and the fingerprint that computed it. Raises `Damaged`."""
    payload = _checked(snapshot, snapshot.state)
    try:
        version, mark_length, size = _SNAPSHOT.unpack_from(payload)
        start = _SNAPSHOT.size + mark_length
        state = np.frombuffer(payload, "<f4", offset=start)
        if version != SNAPSHOT_VERSION or state.size != size:
            raise Damaged(f"snapshot {snapshot.ordinal} has version {version} and {state.size} of {size} numbers")
        return state.copy(), bytes(payload[_SNAPSHOT.size : start]).decode()
    except (struct.error, ValueError) as exc:
        raise Damaged(f"snapshot {snapshot.ordinal} can't be read: {exc}") from exc


def _checked(of: Record | Snapshot, stored: bytes) -> memoryview:
    if len(stored) < _CRC.size:
        raise Damaged(f"{len(stored)} bytes are too few for a checksum")
    content = memoryview(stored)[_CRC.size :]
    if _crc(of.session_id, of.incarnation, of.ordinal, of.position, of.experience, content) != stored[: _CRC.size]:
        raise Damaged(f"the checksum of ordinal {of.ordinal} of session {of.session_id!r} does not fit")
    return content
