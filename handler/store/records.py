"""The bytes of records and snapshots: what the journal writes and believes again later.

Both carry a CRC-32 over their content and over whose they are, so that a flipped bit, a cut, or a row that strayed to
another session is noticed. Layout (little-endian): crc32 u32, then a header, then the payload.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.store.contract import Record, Snapshot

RECORD_VERSION = 2
SNAPSHOT_VERSION = 1
_CRC = struct.Struct("<I")
# version, kind, timesteps, input size, output size, writer id, fingerprint length
_RECORD = struct.Struct("<BBIIIQB")
# version, fingerprint length, number of floats
_SNAPSHOT = struct.Struct("<BBQ")
_KINDS = ("chunk", "chunk after reset", "reset experience", "reset all")


class Damaged(Exception):
    """A record or snapshot is not what was written."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A decoded record: inputs and outputs are empty for a reset."""

    ordinal: int
    position: int  # after it
    experience: int  # after it
    reset: str  # "", "experience" or "all": what came first
    inputs: Float32  # [T, I]
    outputs: Float32  # [T, O]
    fingerprint: str
    writer_id: int

    @property
    def start(self) -> int:
        return self.position - len(self.inputs)

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers that go in and come out at each timestep."""
        return self.inputs.shape[1], self.outputs.shape[1]


def _identity(of: Record | Snapshot) -> bytes:
    return f"{of.session_id}/{of.incarnation}/{of.ordinal}/{of.position}/{of.experience}".encode()


def encode_record(
    session_id: str,
    incarnation: int,
    ordinal: int,
    position: int,
    experience: int,
    at: float,
    fingerprint: str,
    inputs: Float32 | None,
    outputs: Float32 | None,
    reset: str,
    writer_id: int,
) -> Record:
    """The record of a chunk (inputs [T, I], outputs [T, O], perhaps after a reset), or of a reset alone (None)."""
    mark = fingerprint.encode()
    if inputs is None or outputs is None:
        kind = 3 if reset == "all" else 2
        parts = [_RECORD.pack(RECORD_VERSION, kind, 0, 0, 0, writer_id, len(mark)), mark]
    else:
        header = _RECORD.pack(
            RECORD_VERSION, 1 if reset else 0, len(inputs), inputs.shape[1], outputs.shape[1], writer_id, len(mark)
        )  # fmt: skip
        parts = [header, mark, inputs.tobytes(), outputs.tobytes()]
    payload = b"".join(parts)
    crc = zlib.crc32(payload, zlib.crc32(f"{session_id}/{incarnation}/{ordinal}/{position}/{experience}".encode()))
    return Record(session_id, incarnation, ordinal, position, experience, at, _CRC.pack(crc) + payload)


def decode_record(record: Record) -> Operation:
    """Raises `Damaged` unless the record is exactly what was written."""
    payload = _checked(record, record.body)
    try:
        if payload[0] != RECORD_VERSION:
            raise Damaged(f"record {record.ordinal} has version {payload[0]}, expected {RECORD_VERSION}")
        _, kind, timesteps, input_size, output_size, writer_id, mark_length = _RECORD.unpack_from(payload)
        start = _RECORD.size + mark_length
        fingerprint = bytes(payload[_RECORD.size : start]).decode()
        values = np.frombuffer(payload, "<f4", offset=start)
        inputs, outputs = values[: timesteps * input_size], values[timesteps * input_size :]
        return Operation(
            ordinal=record.ordinal,
            position=record.position,
            experience=record.experience,
            reset=("", "experience", "experience", "all")[kind],
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
    payload = _SNAPSHOT.pack(SNAPSHOT_VERSION, len(mark), state.size) + mark + state.tobytes()
    crc = zlib.crc32(payload, zlib.crc32(f"{session_id}/{incarnation}/{ordinal}/{position}/{experience}".encode()))
    return Snapshot(session_id, incarnation, ordinal, position, experience, at, _CRC.pack(crc) + payload)


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


def _checked(of: Record | Snapshot, content: bytes) -> memoryview:
    if len(content) < _CRC.size:
        raise Damaged(f"{len(content)} bytes are too few for a checksum")
    payload = memoryview(content)[_CRC.size :]
    if zlib.crc32(payload, zlib.crc32(_identity(of))) != _CRC.unpack_from(content)[0]:
        raise Damaged(f"the checksum of ordinal {of.ordinal} of session {of.session_id!r} does not fit")
    return payload
