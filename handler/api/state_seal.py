"""States that callers keep themselves: signed, so that nobody else's and nothing altered comes back.

A sealed state is, little-endian,

    magic 8 | key 4 | sealed at, seconds f64 | position u64 | experience u64 | model digest 32 | state [S] f32 | HMAC 32

where `key` tells which of the keys signed it, and the HMAC-SHA256 is over all before it, by a key that follows from
that one and the caller's name: the state of one token is refused from another. Whoever has a state may read it.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnc_serve.handler.api.watched_file import WatchedFile
from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.errors import ServeError

MAGIC = b"dncstate"
_HEADER = struct.Struct("<8s4sdQQ32s")
_KEY_BYTES = 32
_MAC_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeptState:
    """A state, and where it stands."""

    model_digest: str
    position: int
    experience: int
    state: Float32 | None  # [S]; None is the state that every session begins with

    def check_stands_at(self, position: int | None, experience: int | None) -> None:
        """Raises STEP_CONFLICT or STEP_GAP for a chunk that follows another position or experience."""
        for name, wanted, at in (
            ("position", position, self.position),
            ("experience", experience, self.experience),
        ):
            if wanted is not None and wanted != at:
                raise ServeError(
                    "STEP_GAP" if wanted > at else "STEP_CONFLICT",
                    f"the chunk follows {name} {wanted}, and the state that came with it stands at {at}",
                    **{f"expected_{name}": at},
                    got=wanted,
                )


class StateSeal:
    """Signs states and knows its own again. `max_age_s` of 0 is any age."""

    def __init__(self, keys_file: str = "", max_age_s: float = 0.0) -> None:
        """Raises OSError, and ValueError that names the file and line."""
        self._max_age_s = max_age_s
        self._keys: dict[bytes, bytes] = {}
        self._file = WatchedFile(Path(keys_file), "state keys", self._read) if keys_file else None

    def refresh(self) -> None:
        """Reads the file again if it has changed: to rotate keys takes no restart."""
        if self._file is not None:
            self._file.refresh()

    def _read(self, path: Path) -> None:
        self._keys = _read_keys(path)

    def check_has_keys(self) -> None:
        """Raises BAD_REQUEST where no state can be signed."""
        if not self._keys:
            raise ServeError(
                "BAD_REQUEST", "this server has no --state-keys to sign states with, expected steps of a session"
            )

    def sealed(self, kept: KeptState, owner: str) -> bytes:
        """A state for its caller."""
        name, key = next(iter(self._keys.items()))
        assert kept.state is not None
        digest = bytes.fromhex(kept.model_digest)
        header = _HEADER.pack(MAGIC, name, CLOCK.now(), kept.position, kept.experience, digest)
        content = header + kept.state.astype("<f4", copy=False).tobytes()
        return content + _signature(content, key, owner)

    def opened(self, sealed: bytes, owner: str, digest: str, size: int) -> KeptState:
        """What a caller got before. Raises BAD_STATE, STATE_EXPIRED, MODEL_MISMATCH."""
        if len(sealed) < _HEADER.size + _MAC_BYTES or not sealed.startswith(MAGIC):
            raise _bad(f"it has {len(sealed)} bytes, and isn't what StepWithState answered")
        content, signature = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
        _, name, sealed_at, position, experience, model = _HEADER.unpack_from(content)
        key = self._keys.get(name)
        if key is None:
            raise _bad(f"it was signed by the key {name.hex()}, which this server hasn't (any more)")
        if not hmac.compare_digest(signature, _signature(content, key, owner)):
            raise _bad("its signature doesn't fit: it was altered or cut, or is another caller's")
        if model.hex() != digest:
            raise ServeError(
                "MODEL_MISMATCH",
                f"the state belongs to model {model.hex()[:12]}, this server runs {digest[:12]}",
                session_digest=model.hex(),
                model_digest=digest,
            )
        if self._max_age_s and (age := CLOCK.now() - sealed_at) > self._max_age_s:
            raise ServeError(
                "STATE_EXPIRED",
                f"the state was sealed {age:.0f} s ago, expected at most {self._max_age_s:g} s",
                expected=self._max_age_s,
                got=round(age, 3),
            )
        if len(content) != _HEADER.size + 4 * size:
            raise _bad(f"it holds {len(content) - _HEADER.size} bytes of a state, expected {4 * size}")
        state = np.frombuffer(content, "<f4", offset=_HEADER.size).astype(np.float32)
        return KeptState(digest, position, experience, state)


def sealed_digest(sealed: bytes) -> str:
    """The digest of the model that a sealed state says it is of, which `opened` proves; empty where it says nothing."""
    return _HEADER.unpack_from(sealed)[-1].hex() if len(sealed) >= _HEADER.size else ""


def _signature(content: bytes, key: bytes, owner: str) -> bytes:
    return hmac.digest(hmac.digest(key, owner.encode(), hashlib.sha256), content, hashlib.sha256)


def _read_keys(path: Path) -> dict[bytes, bytes]:
    """Keys by the names that states have them under, in the file's order."""
    keys = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:  # what stands there isn't shown: it may be a key that was pasted badly
            raise ValueError(f"{path}: line {number} is no key; expected {2 * _KEY_BYTES} hex digits")
        keys[hashlib.sha256(key).digest()[:4]] = key
    if not keys:
        raise ValueError(f"{path} holds no key; expected a line of {2 * _KEY_BYTES} hex digits")
    return keys


def _bad(what: str) -> ServeError:
    return ServeError("BAD_STATE", f"not a state to go on from: {what}")
