"""The streaming endpoint of a worker among several: what is its own it answers, the rest it passes on.

A call about one session goes to the worker whose that is; a list asks them all. Whoever passes a call on takes the
caller's token and deadline along, and gives back what the other worker answers, refusals included.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from dnc_serve.handler.api.answering import Context
from dnc_serve.handler.api.models import merged
from dnc_serve.handler.api.operations import Caller
from dnc_serve.handler.api.service import DncService
from dnc_serve.handler.api.siblings import Siblings, as_called, passed_on, refusal_of
from dnc_serve.handler.api.switch import Switch
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc


class SharedService(dnc_pb2_grpc.DncServiceServicer):
    """Answers calls for the machine. A request that is a `ServeError` could not be read."""

    def __init__(self, own: DncService, siblings: Siblings) -> None:
        self._own = own
        self._siblings = siblings
        self._place = siblings.place

    async def CreateSession(self, request: Any, context: Context) -> Any:
        return await self._passed("CreateSession", request, lambda: request.session_id, context)

    async def GetSession(self, request: Any, context: Context) -> Any:
        return await self._passed("GetSession", request, lambda: request.session_id, context)

    async def DeleteSession(self, request: Any, context: Context) -> Any:
        return await self._passed("DeleteSession", request, lambda: request.session_id, context)

    async def Step(self, request: Any, context: Context) -> Any:
        return await self._passed("Step", request, lambda: request.chunk.session_id, context)

    async def ResetSession(self, request: Any, context: Context) -> Any:
        return await self._passed("ResetSession", request, lambda: request.reset.session_id, context)

    async def DumpMemory(self, request: Any, context: Context) -> None:
        await self._passed("DumpMemory", request, lambda: request.dump.session_id, context)

    async def WatchMemory(self, request: Any, context: Context) -> None:
        await self._passed("WatchMemory", request, lambda: request.session_id, context)

    async def ReplaySession(self, request: Any, context: Context) -> None:
        await self._passed("ReplaySession", request, lambda: request.session_id, context)

    async def ExportSession(self, request: Any, context: Context) -> None:
        await self._passed("ExportSession", request, lambda: request.session_id, context)

    async def GetModel(self, request: Any, context: Context) -> Any:
        return await self._own.GetModel(request, context)

    async def ListModels(self, request: Any, context: Context) -> Any:
        return await self._own.ListModels(request, context)

    async def LoadModel(self, request: Any, context: Context) -> Any:
        return await self._own.LoadModel(request, context)

    async def UnloadModel(self, request: Any, context: Context) -> Any:
        return await self._own.UnloadModel(request, context)

    async def MigrateSession(self, request: Any, context: Context) -> Any:
        return await self._passed("MigrateSession", request, lambda: request.session_id, context)

    async def StepWithState(self, request: Any, context: Context) -> Any:
        return await self._own.StepWithState(request, context)

    async def Stream(self, request_iterator: AsyncIterator[pb.StreamRequest], context: Context) -> None:
        await self._own.serve_stream(context, Switch(context, self._siblings, self._own.models.metrics))

    async def ImportSession(self, request_iterator: AsyncIterator[Any], context: Context) -> Any:
        async def first_part(caller: Caller) -> Any:
            return await anext(aiter(request_iterator), None)

        # The first part names the session, and so the worker. It is waited for as the caller's whose token was checked.
        first = await self._own.answer(context, None, first_part)

        async def parts() -> AsyncIterator[Any]:
            if first is not None:
                yield first
            async for part in request_iterator:
                yield part

        if first is None or isinstance(first, ServeError) or self._place.owns(first.session_id):
            return await self._own.ImportSession(parts(), context)
        return await self._from(self._place.owner_of(first.session_id), "ImportSession", _readable(parts()), context)

    async def ForkSession(self, request: Any, context: Context) -> Any:
        return await self._passed("ForkSession", request, lambda: request.fork_session_id, context)

    async def ListSessions(self, request: Any, context: Context) -> Any:
        """A page of all workers' sessions."""

        async def listed(caller: Caller) -> pb.ListSessionsResponse:
            own = self._own.models.list_sessions(request, caller)
            others = (self._listed_at(worker, request, context) for worker in self._place.others)
            return merged(await asyncio.gather(own, *others), request.page_size)

        return await self._own.answer(context, request, listed)

    async def _listed_at(self, worker: int, request: Any, context: Context) -> pb.ListSessionsResponse:
        try:
            page: pb.ListSessionsResponse = await self._siblings.stub(worker).ListSessions(
                request, **as_called(context)
            )
            return page
        except grpc.aio.AioRpcError as error:
            raise refusal_of(error, worker) from None

    async def _passed(self, method: str, request: Any, session_id: Any, context: Context) -> Any:
        """The answer of the worker that has the session."""
        if isinstance(request, ServeError) or self._place.owns(name := session_id()):
            return await getattr(self._own, method)(request, context)
        return await self._from(self._place.owner_of(name), method, request, context)

    async def _from(self, worker: int, method: str, request: Any, context: Context) -> Any:
        """What another worker answers, in one message or in several."""
        call = getattr(self._siblings.stub(worker), method)(request, **as_called(context))
        return await passed_on(call, worker, context, encodes=method == "WatchMemory")


async def _readable(parts: AsyncIterator[Any]) -> AsyncIterator[pb.ImportSessionRequest]:
    """Parts on their way to another worker, up to one that could not be read: cut short, the blob is refused there."""
    async for part in parts:
        if isinstance(part, ServeError):
            return
        yield part
