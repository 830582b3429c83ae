"""What a call can end in other than its result.

    DncError                        reason, message, metadata, retry_after_s
    ├── InvalidRequest              what was sent is wrong; nothing was applied
    │   ├── BadShape  BadDtype  NotFinite  ChunkTooLong  BadId  BadRequest  BadBlob  BadState
    │   ├── ModelNotFound  ModelUnusable  ModelInUse
    ├── SessionError                which session
    │   ├── SessionNotFound  SessionExpired  SessionExists  SessionReplaced  SessionMoved
    ├── PositionError               where the session stands
    │   ├── StepGap  StepConflict  ReplyGone  PositionGone
    ├── ResultError                 what came out, or would
    │   ├── NonFiniteResult  ModelMismatch  CorruptState  StateExpired
    ├── LimitError                  too much at once
    │   ├── SessionLimit  QueueFull  StateTooLarge  RateLimit
    ├── Unavailable                 no server answers, or not now
    │   ├── Draining  NotReady  StoreUnavailable
    ├── DeadlineExceeded  Cancelled
    ├── AccessError                 who calls
    │   ├── Unauthenticated  PermissionDenied
    ├── Internal                    a mistake of the server
    └── ClientClosed                a mistake of the caller: the client is not usable any more

One class for each reason in `proto/reasons.py`, named after it. `from_status` and `from_rpc_error` are the only places
that turn what gRPC says into one of these.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from dnc_serve.proto.reasons import DOMAIN


class DncError(Exception):
    """A call failed; `metadata` holds what a program needs to go on, such as `expected_position`."""

    transient: bool = False
    """Whether the same call may succeed later; the client has tried again until its timeout."""

    certain: bool = False
    """Whether a server that refuses a chunk with it tells for certain that the chunk was not applied."""

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.reason = reason or _reason_of(type(self))

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def with_note(self, note: str, **metadata: object) -> "DncError":
        """The same error with something added; this one is its cause."""
        noted = type(self)(
            f"{self.message}; {note}",
            metadata=self.metadata | {key: str(value) for key, value in metadata.items()},
            retry_after_s=self.retry_after_s,
            reason=self.reason,
        )
        noted.__cause__ = self
        return noted


class InvalidRequest(DncError):
    """What was sent is wrong; nothing was applied. `metadata` may say what was `expected` and what it `got`."""

    certain = True


class BadShape(InvalidRequest):
    """The inputs are not [T, I] with at least one timestep."""


class BadDtype(InvalidRequest):
    """The inputs are not numbers that fit float32."""


class NotFinite(InvalidRequest):
    """The inputs hold NaN or infinity."""


class ChunkTooLong(InvalidRequest):
    """A chunk has more timesteps than the server takes at once."""


class BadId(InvalidRequest):
    """The id can't name a session."""


class BadRequest(InvalidRequest):
    """Anything else that is wrong in a request."""


class BadBlob(InvalidRequest):
    """What was to be imported is not a whole, unaltered export."""


class BadState(InvalidRequest):
    """A state that the caller keeps was altered or cut, is another caller's, or was sealed by another server's key."""


class ModelNotFound(InvalidRequest):
    """The server has no model of that name."""


class ModelUnusable(InvalidRequest):
    """What was to be loaded as a model can't be: the message says why. All is as before."""


class ModelInUse(InvalidRequest):
    """A version of a model has sessions, or is the only one, or is there already under that name."""


class SessionError(DncError):
    """The session is not the one that was asked for."""


class SessionNotFound(SessionError):
    """There is no such session, or it was deleted."""


class SessionExpired(SessionError):
    """The session ended for its age or for idleness; `metadata` says when."""


class SessionExists(SessionError):
    """A session of that id is there already."""


class SessionReplaced(SessionError):
    """The session of that id was created or imported anew."""


class SessionMoved(SessionError):
    """Another server owns the session: `metadata["owner"]`."""


class PositionError(DncError):
    """The request doesn't fit where the session stands: `metadata["expected_position"]`."""


class StepGap(PositionError):
    """The session stands before what was sent."""

    certain = True


class StepConflict(PositionError):
    """Other timesteps, or another writer's, were applied at that position; `resync` goes on behind them."""

    certain = True


class ReplyGone(PositionError):
    """The timesteps were applied, so long ago that their outputs are not kept any more."""


class PositionGone(PositionError):
    """An earlier position that the journal doesn't reach any more."""


class ResultError(DncError):
    """What the model computes, or would, can't be used."""

    certain = True


class NonFiniteResult(ResultError):
    """The chunk would lead to NaN or infinity; it was refused, and the session is as before."""


class ModelMismatch(ResultError):
    """The session belongs to another model: `metadata` has both digests."""


class CorruptState(ResultError):
    """The state can't be trusted."""


class StateExpired(ResultError):
    """A state that the caller keeps was sealed longer ago than the server takes."""


class LimitError(DncError):
    """Too much at once."""

    certain = True


class SessionLimit(LimitError):
    """The server, or the token, has as many sessions as may be."""


class QueueFull(LimitError):
    """Too much waits already."""

    transient = True


class StateTooLarge(LimitError):
    """A session's state doesn't fit the server's budget."""


class RateLimit(LimitError):
    """The token's timesteps of this second are used up."""

    transient = True


class Unavailable(DncError):
    """No server answers, or not now."""

    transient = True


class Draining(Unavailable):
    """The server is leaving."""


class NotReady(Unavailable):
    """The server has not started yet."""


class StoreUnavailable(Unavailable):
    """The server can't write its journal now."""


class DeadlineExceeded(DncError):
    """No answer came in time."""


class Cancelled(DncError):
    """The call was given up; where it was a step, what had been sent may or may not have been applied."""


class AccessError(DncError):
    """The caller may not do this."""

    certain = True


class Unauthenticated(AccessError):
    """The token is missing, unknown or expired."""


class PermissionDenied(AccessError):
    """The token doesn't allow it."""


class Internal(DncError):
    """The server made a mistake, or doesn't speak this contract."""


class ClientClosed(DncError):
    """The client was closed, or belongs to the process that this one was forked from."""


def from_status(status: status_pb2.Status) -> DncError:
    """The error that a `google.rpc.Status` of the server describes."""
    reason, metadata, retry_after_s = "", {}, None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            if info.domain == DOMAIN:
                reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    error_class = BY_REASON.get(reason)
    if error_class is not None:
        return error_class(status.message, metadata=metadata, retry_after_s=retry_after_s)
    return _from_code(status.code, status.message, reason, metadata, retry_after_s)


def from_rpc_error(error: grpc.aio.AioRpcError) -> DncError:
    """The error that a failed call describes: the server's own in the trailer, else what gRPC itself says."""
    status = rpc_status.from_call(cast("grpc.Call", error))
    if status is not None and status.details:
        return from_status(status)
    # The server describes each of its errors; one without a description comes from the way to it.
    if error.code() in _SIGNS_OF_A_LOST_CONNECTION:
        return Unavailable(error.details() or error.code().name)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return Internal(
            "what answers there is no streaming endpoint of this version; expected the address that follows `grpc=` in "
            f"the line that `dnc serve` prints ({error.details()})"
        )
    return _from_code(error.code().value[0], error.details() or error.code().name)


@contextmanager
def translated() -> Iterator[None]:
    """Raises what gRPC raises as a `DncError`."""
    try:
        yield
    except grpc.aio.AioRpcError as exc:
        # What gRPC says is worth keeping; where in gRPC it was raised is not.
        raise from_rpc_error(exc) from exc.with_traceback(None)


def _from_code(
    code: int,
    message: str,
    reason: str = "",
    metadata: Mapping[str, str] | None = None,
    retry_after_s: float | None = None,
) -> DncError:
    """What stands for a status without a known reason."""
    error_class = _BY_CODE.get(code, Internal)
    return error_class(message, metadata=metadata, retry_after_s=retry_after_s, reason=reason or None)


def _reason_of(error_class: type[DncError]) -> str:
    """BAD_SHAPE for BadShape."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", error_class.__name__).upper()


def _leaves(error_class: type[DncError]) -> Iterator[type[DncError]]:
    yield error_class
    for child in error_class.__subclasses__():
        yield from _leaves(child)


BY_REASON: Mapping[str, type[DncError]] = {_reason_of(error_class): error_class for error_class in _leaves(DncError)}
_BY_CODE: Mapping[int, type[DncError]] = {
    grpc.StatusCode.INVALID_ARGUMENT.value[0]: BadRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND.value[0]: SessionNotFound,
    grpc.StatusCode.ALREADY_EXISTS.value[0]: SessionExists,
    grpc.StatusCode.PERMISSION_DENIED.value[0]: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: LimitError,
    grpc.StatusCode.UNAVAILABLE.value[0]: Unavailable,
    grpc.StatusCode.CANCELLED.value[0]: Cancelled,
    grpc.StatusCode.UNAUTHENTICATED.value[0]: Unauthenticated,
}
_SIGNS_OF_A_LOST_CONNECTION = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)
