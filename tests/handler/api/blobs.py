"""Blobs of sessions, written by hand: what a stranger might send."""

import hashlib
import json

from safetensors.numpy import load, save

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door


def exported(door: Door, session_id: str) -> bytes:
    request = pb.ExportSessionRequest(session_id=session_id)
    return b"".join(part.data for part in door.stub.ExportSession(request, timeout=TIMEOUT))


def imported(door: Door, session_id: str, blob: bytes) -> pb.Session:
    message = pb.ImportSessionRequest(session_id=session_id, total_bytes=len(blob), data=blob)
    return door.stub.ImportSession(iter([message]), timeout=TIMEOUT).session


def altered(blob: bytes, **metadata: str) -> bytes:
    """The blob with other metadata, and a checksum that fits them."""
    length = int.from_bytes(blob[:8], "little")
    facts = json.loads(blob[8 : 8 + length])["__metadata__"] | metadata
    del facts["sha256"]
    state = load(blob)["state"]
    described = json.dumps(facts, sort_keys=True)
    facts["sha256"] = hashlib.sha256(described.encode() + state.tobytes()).hexdigest()
    return save({"state": state}, metadata=facts)
