"""What the server says about its model and its sessions, as plain values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dnc_serve.client.arrays import Array, TensorSpec, from_wire
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

# gRPC's own limit on a message is 4 MiB; ids and numbers take little of it.
MAX_ARRAY_BYTES = (4 << 20) - (64 << 10)


class _OfAMessage:
    """What is read from a message of the server."""

    __slots__ = ()

    @classmethod
    def _copied(cls, message: Any, **others: Any) -> Self:
        """Fields of the message, and those that are called or written otherwise."""
        same = (field.name for field in fields(cls) if field.name not in others)  # type: ignore[arg-type]
        return cls(**{name: getattr(message, name) for name in same}, **others)


@dataclass(frozen=True, slots=True)
class ModelInfo(_OfAMessage):
    """What a server serves, and what it takes at once."""

    name: str
    version: str
    inputs: TensorSpec  # of one timestep
    outputs: TensorSpec
    state: tuple["StateField", ...]
    derived: tuple[str, ...]  # what a dump may name beside the fields of the state
    config: Mapping[str, Any]  # DNCConfig; empty if the model is another
    task: str  # what it was trained for, as `dnc train` names it; empty if its artifact doesn't say
    digest: str  # of program, weights and sizes
    artifact: str  # what steps sessions: row-kernel, torchscript or program
    artifact_note: str  # why it is not the row kernel
    fingerprint: str  # what the promise of equal bits holds for
    device: str
    state_bytes: int  # of one session
    server_epoch: str  # new at each start of the server
    server_version: str
    durability: str  # off, async or sync
    max_chunk_timesteps: int
    max_in_flight_chunks: int  # of one session
    tile_rows: tuple[int, ...]
    debug_bytes: int  # of the debug arrays of a timestep

    def __repr__(self) -> str:
        what = f"{self.name}: {self.inputs} → {self.outputs}, {self.state_bytes} bytes a session"
        return f"<ModelInfo {what}, {self.artifact} on {self.device}, digest {self.digest[:12]}…>"

    @property
    def input_size(self) -> int:
        """Numbers that a timestep takes."""
        return self.inputs.size

    @property
    def output_size(self) -> int:
        """Numbers that a timestep gives."""
        return self.outputs.size

    def field(self, name: str) -> "StateField":
        """A field of the state. Raises KeyError."""
        return {field.name: field for field in self.state}[name]

    def chunk_timesteps(self, debug: bool = False) -> int:
        """The longest chunk that neither the server's limit nor that of a message forbids, there or back."""
        bytes_a_timestep = max(1, self.inputs.nbytes, self.outputs.nbytes + (self.debug_bytes if debug else 0))
        return max(1, min(self.max_chunk_timesteps, MAX_ARRAY_BYTES // bytes_a_timestep))

    @classmethod
    def from_wire(cls, message: pb.GetModelResponse) -> Self:
        return cls._copied(
            message, config=json.loads(message.config_json or "{}"), digest=message.model_digest,
            tile_rows=tuple(message.tile_rows), derived=tuple(message.derived),
            inputs=TensorSpec.from_wire(message.inputs), outputs=TensorSpec.from_wire(message.outputs),
            state=tuple(StateField.from_wire(field) for field in message.state),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StateField(_OfAMessage):
    """A tensor of a session's state."""

    name: str
    shape: tuple[int, ...]  # of each part
    dtype: str  # as the server keeps it; bfloat16 is shown as float32
    parts: int  # how many there are of that name: memories, or layers
    experience: bool  # whether a reset of the experience clears it

    @classmethod
    def from_wire(cls, message: pb.StateField) -> Self:
        return cls._copied(message, shape=tuple(message.shape))


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A version of one of the models that a server has."""

    name: str
    digest: str
    version: str
    sessions: int  # at the worker that answered
    share: float | None  # of new sessions, of a version that gets only some

    @classmethod
    def from_wire(cls, message: pb.ModelSummary) -> Self:
        share = message.share if message.HasField("share") else None
        return cls(message.name, message.model_digest, message.version, message.sessions, share)


@dataclass(frozen=True, slots=True)
class SessionInfo(_OfAMessage):
    """A session as its server describes it."""

    id: str
    incarnation: int
    position: int  # timesteps consumed
    durable_position: int  # timesteps that survive a power loss
    experience: int  # resets done
    model: str  # its name
    model_version: str
    model_digest: str
    tier: str  # slot, host or store
    state_bytes: int
    created: datetime
    last_used: datetime
    earliest_position: int  # that a fork or a dump can go back to
    replayed_elsewhere: bool  # a replay had to use another artifact
    fingerprint: str

    def __repr__(self) -> str:
        standing = f"position {self.position}, experience {self.experience}"
        return f"<SessionInfo {self.id!r}, {standing}, {self.state_bytes} bytes in {self.tier}>"

    @classmethod
    def from_wire(cls, message: pb.Session) -> Self:
        return cls._copied(
            message, id=message.session_id, tier=_tier(message), created=message.created.ToDatetime(UTC),
            last_used=message.last_used.ToDatetime(UTC),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StateAfter:
    """What `step_with_state` gives: the outputs [T, *shape], and the state to go on from."""

    outputs: Array
    state: bytes
    position: int
    experience: int

    def __repr__(self) -> str:
        return f"<StateAfter position {self.position}, experience {self.experience}, {len(self.state)} bytes>"


@dataclass(frozen=True, slots=True)
class MemoryLook(_OfAMessage):
    """A session's memory at one position, thinned: a cell is the value of largest magnitude that it stands for."""

    position: int
    experience: int
    arrays: dict[str, NDArray[np.float32]]  # the first axis counts memories, or layers
    full_shapes: dict[str, tuple[int, ...]]  # that they were thinned from

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {list(shape)}" for name, shape in self.full_shapes.items())
        return f"<{type(self).__name__} at position {self.position}: {arrays}>"


@dataclass(frozen=True, slots=True, repr=False)
class MemoryFrame(MemoryLook):
    """One look at a session's memory while it works."""

    tier: str
    skipped_frames: int  # since the frame before
    at: datetime

    @classmethod
    def from_wire(cls, message: pb.WatchMemoryResponse) -> Self:
        return cls._copied(message, tier=_tier(message), at=message.at.ToDatetime(UTC), **_watched(message))


@dataclass(frozen=True, slots=True)
class PastTimestep(_OfAMessage):
    """A timestep that was done before, thinned as a look."""

    position: int  # after it
    experience: int
    inputs: NDArray[Any]  # [*shape]
    outputs: NDArray[Any]  # [*shape]
    arrays: dict[str, NDArray[np.float32]]  # what it left; the first axis counts memories, or layers
    full_shapes: dict[str, tuple[int, ...]]

    @classmethod
    def from_wire(cls, message: pb.ReplaySessionResponse) -> Self:
        return cls._copied(
            message, inputs=from_wire(message.inputs), outputs=from_wire(message.outputs), **_watched(message)
        )


def _watched(message: Any) -> dict[str, Any]:
    return {
        "arrays": {name: from_wire(watched.array) for name, watched in message.arrays.items()},
        "full_shapes": {name: tuple(watched.full_shape) for name, watched in message.arrays.items()},
    }


def _tier(message: Any) -> str:
    return pb.Tier.Name(message.tier).removeprefix("TIER_").lower()
