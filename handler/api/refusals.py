"""What each endpoint does with a refusal before it tells it: it is counted, and logged."""

import logging
from typing import Any

from dnc_serve.handler.api.logs import log_message_refusal, log_refusal
from dnc_serve.handler.errors import ServeError, internal_error
from dnc_serve.handler.metrics import Metrics

logger = logging.getLogger(__name__)


def refusal_for(error: Exception, request: Any, metrics: Metrics) -> ServeError:
    """What a call is refused with that has raised this; whatever isn't a refusal is a mistake of ours."""
    if isinstance(error, ServeError):
        refused = error
    else:
        logger.error("a call failed", exc_info=error)
        refused = internal_error()
    log_refusal(request, refused)
    metrics.errors.labels(refused.reason).inc()
    return refused


def note_message_refusal(session_id: str, request_id: int | str, refused: ServeError, metrics: Metrics) -> None:
    """One message of a stream is refused, and the stream goes on."""
    log_message_refusal(session_id, request_id, refused)
    metrics.errors.labels(refused.reason).inc()
