"""A session as a safetensors file: one tensor `state` [S] and, in the metadata, whose it is and where it stood.

A SHA-256 over metadata and state refuses what was cut or altered. Nothing in it is executed or unpickled, and nothing
is allocated on its word: its size is checked against the model's state first.
"""

import hashlib
import json
import re
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.contract import MAX_COUNT
from dnc_serve.model.rows import RowLayout

FORMAT = "dnc-serve session 1"
# The header: metadata and one tensor's description.
MAX_HEADER_BYTES = 65_536
_KEYS = ("format", "session_id", "model_digest", "position", "experience", "fingerprint", "state_size")


@dataclass(frozen=True, slots=True)
class SessionBlob:
    """What a blob holds."""

    session_id: str
    model_digest: str
    position: int
    experience: int
    fingerprint: str
    state: Float32  # [S]

    def encode(self) -> bytes:
        """The file's bytes."""
        metadata = {
            "format": FORMAT,
            "session_id": self.session_id,
            "model_digest": self.model_digest,
            "position": str(self.position),
            "experience": str(self.experience),
            "fingerprint": self.fingerprint,
            "state_size": str(self.state.size),
        }
        metadata["sha256"] = _digest(metadata, self.state)
        return save({"state": np.ascontiguousarray(self.state, "<f4")}, metadata=metadata)


def decode_blob(blob: bytes, model_digest: str, layout: RowLayout) -> SessionBlob:
    """Raises BAD_BLOB with what is wrong, or MODEL_MISMATCH with both digests."""
    state_size = layout.size
    check_size(len(blob), state_size)
    metadata = _metadata(blob)
    missing = [key for key in (*_KEYS, "sha256") if key not in metadata]
    if missing or metadata["format"] != FORMAT:
        raise _bad(f"metadata lack {', '.join(missing)}" if missing else f"format is {metadata['format']!r}")
    if metadata["model_digest"] != model_digest:
        raise ServeError(
            "MODEL_MISMATCH",
            f"the blob belongs to model {metadata['model_digest'][:12]}, this server runs {model_digest[:12]}",
            session_digest=metadata["model_digest"],
            model_digest=model_digest,
        )
    try:
        tensors = load(blob)
        state = tensors["state"]
    except (SafetensorError, KeyError, ValueError) as exc:
        raise _bad(f"not a whole safetensors file: {exc}") from exc
    if list(tensors) != ["state"] or state.dtype != np.float32 or state.shape != (state_size,):
        raise _bad(f"expected one float32 tensor 'state' of {state_size} numbers, got {state.dtype} {state.shape}")
    if _digest({key: metadata[key] for key in _KEYS}, state) != metadata["sha256"]:
        raise _bad("its SHA-256 does not fit: it was altered or cut")
    if (field := layout.not_finite(state)) is not None:
        raise _bad(f"its state's {field.name} holds numbers that are not finite")
    return SessionBlob(
        metadata["session_id"], model_digest, _count(metadata, "position"), _count(metadata, "experience"),
        metadata["fingerprint"], state,
    )  # fmt: skip


def digest_of(blob: bytes) -> str:
    """The digest of the model that a blob says it belongs to, which is proven later. Raises BAD_BLOB."""
    metadata = _metadata(blob)
    if "model_digest" not in metadata:
        raise _bad("metadata lack model_digest")
    return metadata["model_digest"]


def check_size(size: int, state_size: int, largest: int = 0) -> None:
    """Raises BAD_BLOB for a size that no blob of a model whose states have so many numbers can have, or of several
    models, if `largest` is the largest."""
    least, most = 4 * state_size, 4 * max(state_size, largest) + MAX_HEADER_BYTES
    if not least < size <= most:
        raise ServeError(
            "BAD_BLOB",
            f"the blob has {size} bytes, expected {least} to {most} for this model",
            expected=f"{least} to {most}",
            got=size,
        )


def _metadata(blob: bytes) -> dict[str, str]:
    length = int.from_bytes(blob[:8], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(blob) - 8):
        raise _bad(f"its header claims {length} bytes")
    try:
        header = json.loads(blob[8 : 8 + length])
        metadata = header["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise _bad(f"its header can't be read: {exc}") from exc
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad("its metadata are not strings by name")
    return metadata


def _count(metadata: dict[str, str], name: str) -> int:
    """A position or an experience: decimal digits, of a number that a store can go on from."""
    text = metadata[name]
    if re.fullmatch("[0-9]{1,19}", text) is None or int(text) > MAX_COUNT:
        raise _bad(f"its {name} is {text[:32]!r}, expected a whole number from 0 to {MAX_COUNT}")
    return int(text)


def _digest(metadata: dict[str, str], state: Float32) -> str:
    described = json.dumps({key: metadata[key] for key in _KEYS}, sort_keys=True)
    return hashlib.sha256(described.encode() + state.tobytes()).hexdigest()


def _bad(what: str) -> ServeError:
    return ServeError("BAD_BLOB", f"not a session blob: {what}")
