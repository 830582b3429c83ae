"""How a gRPC call is answered: who asks, what comes of it, and what of a refusal the caller is told."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc

from dnc_serve.handler.api.access import Access
from dnc_serve.handler.api.logs import log_answer
from dnc_serve.handler.api.operations import Caller
from dnc_serve.handler.api.refusals import refusal_for
from dnc_serve.handler.api.status import DETAILS, code_of, status_of
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.metrics import Metrics

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


async def answer(
    metrics: Metrics,
    access: Access,
    context: Context,
    request: Any,
    call: Callable[[Caller], Awaitable[Answer]],
    endpoint: str,
) -> Answer | None:
    """Finds out who calls, and turns what is raised into the call's status.

    `request` is the refusal itself if the message could not be read.
    """
    started_at = time.perf_counter()
    try:
        if isinstance(request, ServeError):
            raise request
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        caller = Caller(access.grant_of(context.invocation_metadata()), endpoint, deadline)
        answered = await caller.grant.while_good(call(caller))
        log_answer(request, caller.owner, endpoint, started_at)
        return answered
    except grpc.aio.InternalError:  # there is nobody any more to write to
        logger.debug("a caller went away")
        raise asyncio.CancelledError from None
    except Exception as error:
        refused = refusal_for(error, request, metrics)
    details = ((DETAILS, status_of(refused).SerializeToString()),)
    await context.abort(code_of(refused), refused.message, details)
    return None
