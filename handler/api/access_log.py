"""What the log says of each call and chunk, at level debug: who asked, for which session, and how long it took.

Callers are named as their tokens are; the tokens themselves stand in no line.
"""

import logging
import time
from typing import TYPE_CHECKING, Any

from dnc_serve.handler.engine.requests import Applied, Chunk
from dnc_serve.handler.engine.session import MAX_ID_LENGTH
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

if TYPE_CHECKING:
    from dnc_serve.handler.api.operations import Caller

logger = logging.getLogger(__name__)

TRACE_ID_LENGTH = 32


def log_chunk(chunk: Chunk, message: pb.Chunk, caller: "Caller") -> None:
    """Has the chunk's answer logged when it is given, if anybody reads that; a refusal is logged by the door."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    tell = chunk.done

    def done(applied: Applied | None, error: ServeError | None) -> None:
        if applied is not None:
            logger.debug("a chunk was answered", extra=_described(chunk, message, caller, applied))
        tell(applied, error)

    chunk.done = done


def log_answer(request: Any, caller: "Caller", started_at: float) -> None:
    """A call was answered that began at `started_at` (`time.perf_counter()`)."""
    if logger.isEnabledFor(logging.DEBUG):
        extra = {"owner": caller.owner, "door": caller.endpoint, "total_ms": _ms(time.perf_counter() - started_at)}
        logger.debug("a call was answered", extra={**_named(request), **extra})


def log_refusal(request: Any, refused: ServeError) -> None:
    """A call was refused."""
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("a call was refused: %s", refused.message, extra={**_named(request), "reason": refused.reason})


def _described(chunk: Chunk, message: pb.Chunk, caller: "Caller", applied: Applied) -> dict[str, Any]:
    now = time.perf_counter()
    described: dict[str, Any] = {
        "session": message.session_id,
        "request_id": message.request_id,
        "owner": caller.owner,
        "door": chunk.door,
        "position": applied.position,
        "timesteps": len(chunk.inputs),
        "replayed": applied.replayed,
        "total_ms": _ms(now - chunk.arrived_at),
    }
    if not applied.replayed:
        described["queue_ms"] = _ms(chunk.started_at - chunk.arrived_at)
        described["ticks_ms"] = _ms(chunk.stepped_at - chunk.started_at)
        described["journal_ms"] = _ms(now - chunk.stepped_at)
    if trace := _trace_of(message.traceparent):
        described["trace"] = trace
    return described


def _named(request: Any) -> dict[str, Any]:
    """What a request is called and the ids that it bears; a stream and what could not be read bear none."""
    named: dict[str, Any] = {}
    if isinstance(request, ServeError) or request is None:
        return named
    named["call"] = type(request).__name__.removesuffix("Request")
    for part in (request, *(getattr(request, name, None) for name in ("chunk", "reset", "dump"))):
        if session_id := getattr(part, "session_id", ""):
            named["session"] = str(session_id)[:MAX_ID_LENGTH]
            named["request_id"] = getattr(part, "request_id", 0)
            break
    return named


def _trace_of(traceparent: str) -> str:
    """The trace's id in a W3C `traceparent`: version-trace-span-flags."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == TRACE_ID_LENGTH else ""


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
