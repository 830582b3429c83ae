"""The streaming endpoint: the contract's service over grpc.aio.

Unary calls answer a refusal with a `google.rpc.Status` in the trailer; streams (see `stream.py`) answer it in-band.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from dnc_serve.handler.api.access import Access
from dnc_serve.handler.api.administration import Administration
from dnc_serve.handler.api.answering import Context, answer
from dnc_serve.handler.api.copies import Copies
from dnc_serve.handler.api.dumps import dump_parts
from dnc_serve.handler.api.forks import fork_from_sibling
from dnc_serve.handler.api.models import Models
from dnc_serve.handler.api.operations import PART_BYTES, Caller
from dnc_serve.handler.api.ordered_stream import Client, OpenStreams
from dnc_serve.handler.api.replay import replay
from dnc_serve.handler.api.siblings import Siblings
from dnc_serve.handler.api.stream import SessionStream
from dnc_serve.handler.api.watch import FeedsOfModels, watch
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc

Answer = TypeVar("Answer")


class Between(Client, Protocol):
    """What stands between a client's stream and this worker's part of it."""

    async def until_answered(self, serving: "asyncio.Task[None]") -> None:
        """Returns when this part and all others are served."""


class DncService(dnc_pb2_grpc.DncServiceServicer):
    """Answers calls at the streaming endpoint."""

    def __init__(
        self, models: Models, administration: Administration, access: Access, streams: OpenStreams,
        siblings: Siblings | None = None,
    ) -> None:  # fmt: skip
        self._siblings = siblings
        self.models = models
        self.administration = administration
        self._access = access
        self._feeds = FeedsOfModels()
        self._streams = streams

    async def CreateSession(
        self, request: pb.CreateSessionRequest, context: Context
    ) -> pb.CreateSessionResponse | None:
        return await self.answer(context, request, lambda caller: self.models.create_session(request, caller))

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse | None:
        async def get_session(caller: Caller) -> pb.GetSessionResponse:
            return await (await self.models.of(request.session_id)).get_session(request, caller)

        return await self.answer(context, request, get_session)

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse | None:
        return await self.answer(context, request, lambda caller: self.models.list_sessions(request, caller))

    async def DeleteSession(
        self, request: pb.DeleteSessionRequest, context: Context
    ) -> pb.DeleteSessionResponse | None:
        async def delete_session(caller: Caller) -> pb.DeleteSessionResponse:
            return await (await self.models.of(request.session_id)).delete_session(request, caller)

        return await self.answer(context, request, delete_session)

    async def Step(self, request: pb.StepRequest, context: Context) -> pb.StepResponse | None:
        async def step(caller: Caller) -> pb.StepResponse:
            return await (await self.models.of(request.chunk.session_id)).step(request, caller)

        return await self.answer(context, request, step)

    async def StepWithState(
        self, request: pb.StepWithStateRequest, context: Context
    ) -> pb.StepWithStateResponse | None:
        async def step(caller: Caller) -> pb.StepWithStateResponse:
            return await self.models.of_state(request.model, "", request.state).step_with_state(request, caller)

        return await self.answer(context, request, step)

    async def ResetSession(self, request: pb.ResetSessionRequest, context: Context) -> pb.ResetSessionResponse | None:
        async def reset_session(caller: Caller) -> pb.ResetSessionResponse:
            return await (await self.models.of(request.reset.session_id)).reset_session(request, caller)

        return await self.answer(context, request, reset_session)

    async def ForkSession(self, request: pb.ForkSessionRequest, context: Context) -> pb.ForkSessionResponse | None:
        async def fork(caller: Caller) -> pb.ForkSessionResponse:
            siblings = self._siblings
            if siblings is None or siblings.place.owns(request.session_id):
                return await Copies(await self.models.of(request.session_id)).fork(request, caller)
            return await fork_from_sibling(self.models, siblings, request, caller, context)

        return await self.answer(context, request, fork)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse | None:
        async def get_model(caller: Caller) -> pb.GetModelResponse:
            return self.models.named(request.model, request.version).descriptions.model()

        return await self.answer(context, request, get_model)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse | None:
        async def list_models(caller: Caller) -> pb.ListModelsResponse:
            return self.models.list_models()

        return await self.answer(context, request, list_models)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse | None:
        return await self.answer(context, request, lambda caller: self.administration.load(request, caller))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse | None:
        return await self.answer(context, request, lambda caller: self.administration.unload(request, caller))

    async def MigrateSession(
        self, request: pb.MigrateSessionRequest, context: Context
    ) -> pb.MigrateSessionResponse | None:
        return await self.answer(context, request, lambda caller: self.administration.migrate(request, caller))

    async def Stream(self, request_iterator: AsyncIterator[pb.StreamRequest], context: Context) -> None:
        await self.serve_stream(context)

    async def serve_stream(self, context: Any, switch: "Between | None" = None, *, bounded: bool = True) -> None:
        """Serves a stream, or what the switch leaves this worker of it. It counts as open unless another worker counts
        it."""

        async def serve(caller: Caller) -> None:
            with self._streams.open(bounded) as register:
                stream = SessionStream(self.models, caller, switch or context, self._streams)
                register(stream)
                if switch is None:
                    await stream.serve()
                else:
                    await switch.until_answered(asyncio.ensure_future(stream.serve()))

        await self.answer(context, None, serve, "stream")

    async def DumpMemory(self, request: pb.DumpMemoryRequest, context: Context) -> None:
        async def dump(caller: Caller) -> None:
            operations = await self.models.of(request.dump.session_id)
            seen, arrays = await operations.dump(request.dump, caller)
            for part in dump_parts(request.dump, seen, arrays):
                await context.write(pb.DumpMemoryResponse(part=part))

        await self.answer(context, request, dump)

    async def WatchMemory(self, request: pb.WatchMemoryRequest, context: Context) -> None:
        async def send(caller: Caller) -> None:
            operations = await self.models.of(request.session_id)
            async for frame in watch(operations, self._feeds.of(operations), request, caller):
                await context.write(frame)

        await self.answer(context, request, send, "watch")

    async def ReplaySession(self, request: pb.ReplaySessionRequest, context: Context) -> None:
        async def send(caller: Caller) -> None:
            async for timestep in replay(await self.models.of(request.session_id), request, caller):
                await context.write(timestep)

        await self.answer(context, request, send)

    async def ExportSession(self, request: pb.ExportSessionRequest, context: Context) -> None:
        async def export(caller: Caller) -> None:
            blob = await Copies(await self.models.of(request.session_id)).export_blob(request, caller)
            for offset in range(0, len(blob), PART_BYTES):
                part = blob[offset : offset + PART_BYTES]
                await context.write(pb.ExportSessionResponse(total_bytes=len(blob), data=part))

        await self.answer(context, request, export)

    async def ImportSession(
        self, request_iterator: AsyncIterator[pb.ImportSessionRequest], context: Context
    ) -> pb.ImportSessionResponse | None:
        async def import_session(caller: Caller) -> pb.ImportSessionResponse:
            session_id, blob = await self._collect(request_iterator)
            return await Copies(self.models.of_blob(blob)).import_blob(session_id, blob, caller)

        return await self.answer(context, None, import_session)

    async def _collect(self, parts: AsyncIterator[pb.ImportSessionRequest]) -> tuple[str, bytes]:
        """The blob, whose size is checked before anything is kept."""
        session_id, total, blob = "", 0, bytearray()
        first = True
        async for part in parts:
            if isinstance(part, ServeError):
                raise part
            if first:
                session_id, total, first = part.session_id, part.total_bytes, False
                self.models.check_blob_size(total)
            blob += part.data
            if len(blob) > total:
                break
        if first or len(blob) != total:
            raise ServeError("BAD_BLOB", f"{len(blob)} bytes came, {total} were announced", expected=total)
        return session_id, bytes(blob)

    async def answer(
        self, context: Context, request: Any, call: Callable[[Caller], Awaitable[Answer]], endpoint: str = "unary"
    ) -> Answer | None:
        return await answer(self.models.metrics, self._access, context, request, call, endpoint)
