"""What the log says of each call and chunk, at level debug: who asked, for which session, and how long it took.

Callers are named as their tokens are; the tokens themselves stand in no line.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

from dnc_serve.handler.engine.observer import Committed, Observer
from dnc_serve.handler.engine.requests import Applied, Chunk
from dnc_serve.handler.engine.session import MAX_ID_LENGTH, Session
from dnc_serve.handler.errors import ServeError

logger = logging.getLogger(__name__)

TRACE_ID_LENGTH = 32


class ChunkLog(Observer):
    """A line for each chunk that was answered; a refusal is logged where it is answered."""

    def committed(self, group: Sequence[Committed]) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            for session, request, applied in group:
                if applied is not None and isinstance(request, Chunk):
                    _log_chunk(session, request, applied)

    def replied_again(self, session: Session, chunk: Chunk, applied: Applied) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            _log_chunk(session, chunk, applied)


def log_answer(request: Any, owner: str, endpoint: str, started_at: float) -> None:
    """A call was answered that began at `started_at` (`time.perf_counter()`)."""
    if logger.isEnabledFor(logging.DEBUG):
        extra = {"owner": owner, "endpoint": endpoint, "total_ms": _ms(time.perf_counter() - started_at)}
        logger.debug("a call was answered", extra={**_named(request), **extra})


def log_refusal(request: Any, refused: ServeError) -> None:
    """A call was refused."""
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("a call was refused: %s", refused.message, extra={**_named(request), "reason": refused.reason})


def log_message_refusal(session_id: str, request_id: int | str, refused: ServeError) -> None:
    """A message on a stream was refused."""
    extra = {"reason": refused.reason, "session": session_id, "request_id": request_id}
    logger.debug("a message on a stream was refused: %s", refused.message, extra=extra)


def _log_chunk(session: Session, chunk: Chunk, applied: Applied) -> None:
    now = time.perf_counter()
    described: dict[str, Any] = {
        "session": session.session_id,
        "request_id": chunk.request_id,
        "owner": chunk.owner,
        "endpoint": chunk.endpoint,
        "position": applied.position,
        "timesteps": len(chunk.inputs),
        "replayed": applied.replayed,
        "total_ms": _ms(now - chunk.arrived_at),
    }
    if not applied.replayed:
        described["queue_ms"] = _ms(chunk.started_at - chunk.arrived_at)
        described["ticks_ms"] = _ms(chunk.stepped_at - chunk.started_at)
        described["journal_ms"] = _ms(now - chunk.stepped_at)
    if trace := _trace_of(chunk.traceparent):
        described["trace"] = trace
    logger.debug("a chunk was answered", extra=described)


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
