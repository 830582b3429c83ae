"""Forks of sessions that another worker has: made where the fork will be, of a state that is fetched."""

from typing import Any

import grpc

from dnc_serve.handler.api.copies import Copies, ForkedState
from dnc_serve.handler.api.models import Models
from dnc_serve.handler.api.operations import Caller
from dnc_serve.handler.api.siblings import Siblings, as_called, refusal_of
from dnc_serve.handler.engine.session import replaced
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb


async def fork_from_sibling(
    models: Models, siblings: Siblings, request: pb.ForkSessionRequest, caller: Caller, context: Any
) -> pb.ForkSessionResponse:
    """As `Copies.fork`; asks in the caller's name. The fork is of its source's model."""
    worker, how = siblings.place.owner_of(request.session_id), as_called(context)
    stub = siblings.stub(worker)
    try:
        answer = await stub.GetSession(pb.GetSessionRequest(session_id=request.session_id), **how)
        incarnation = answer.session.incarnation
        if request.HasField("incarnation") and request.incarnation != incarnation:
            raise replaced(request.session_id, answer.session.position, incarnation, request.incarnation)
        copies = Copies(models.named(answer.session.model))

        async def state_at(position: int | None) -> ForkedState:
            export = pb.ExportSessionRequest(session_id=request.session_id, incarnation=incarnation, position=position)
            return copies.read(b"".join([part.data async for part in stub.ExportSession(export, **how)]))

        return await copies.fork_of(incarnation, state_at, request, caller)
    except grpc.aio.AioRpcError as error:
        raise refusal_of(error, worker) from None
