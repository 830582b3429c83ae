"""The door at which the other workers of a machine come in.

What comes in there is for this worker: it is served as at the streaming endpoint, tokens included, and never passed on.
"""

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import EOF

from dnc_serve.handler.api.access import HEADER, Holding
from dnc_serve.handler.api.inference_service import InferenceService
from dnc_serve.handler.api.readable import ReadableServer
from dnc_serve.handler.api.relay import Broken, Line, Pipe, Refused
from dnc_serve.handler.api.service import DncService
from dnc_serve.handler.api.siblings import COUNT, HELD, NO_LIMIT, SERVICE, VERSIONS, address_of
from dnc_serve.handler.api.status import DETAILS, code_of, status_of
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.place import Place
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.inference import inference_pb2_grpc


class Door:
    """Where the others come in. `held_by(owner)` is what sessions of a token this worker has; `asked` is
    `Administration.asked`."""

    def __init__(
        self,
        place: Place,
        service: DncService,
        inference: InferenceService,
        held_by: Callable[[str], Holding],
        asked: Callable[[bytes], Awaitable[bytes]],
    ) -> None:
        self._address = address_of(place, place.worker)
        self._line = place.line(place.worker)
        self._serving: set[asyncio.Task[None]] = set()
        self._service = service
        self._inference = inference
        self._held_by = held_by
        self._asked = asked
        self._server = grpc.aio.server(options=[*NO_LIMIT])

    async def open(self) -> None:
        """Answers from now on."""
        readable = ReadableServer(self._server)
        dnc_pb2_grpc.add_DncServiceServicer_to_server(self._service, readable)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._inference, readable)
        own: dict[str, Any] = {
            COUNT: grpc.unary_unary_rpc_method_handler(self._count),
            VERSIONS: grpc.unary_unary_rpc_method_handler(self._versions),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, own),))
        self._server.add_insecure_port(self._address)
        await self._server.start()
        self._line.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._lines = await loop.create_unix_server(lambda: Line(self._on_open), str(self._line))

    async def close(self, grace_s: float) -> None:
        """Calls under way may end within the grace time."""
        self._lines.close()
        for task in self._serving:
            task.cancel()
        await self._server.stop(grace_s)

    async def _count(self, owner: bytes, context: Any) -> bytes:
        return struct.pack(HELD, *self._held_by(owner.decode()))

    async def _versions(self, asked: bytes, context: Any) -> bytes:
        try:
            return await self._asked(asked)
        except ServeError as refused:
            details = ((DETAILS, status_of(refused).SerializeToString()),)
            await context.abort(code_of(refused), refused.message, details)
            raise AssertionError from None  # it has raised

    def _on_open(self, pipe: Pipe, opening: bytes) -> None:
        task = asyncio.ensure_future(self._serve(pipe, opening))
        pipe.on_cancel = task.cancel
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, pipe: Pipe, opening: bytes) -> None:
        context = PipeContext(pipe, opening)
        try:
            await self._service.serve_stream(context, bounded=False)  # it was, where it came in
            if not context.refused:
                pipe.finish()
        finally:
            pipe.close()


def opening_of(context: Any) -> bytes:
    """What a `PipeContext` is told of the client's stream."""
    token = next((value for key, value in context.invocation_metadata() or () if key == HEADER), None)
    return json.dumps({"token": token, "remaining_s": context.time_remaining()}).encode()


class PipeContext:
    """A pipe as the service sees a client's stream: what it uses of gRPC's context."""

    def __init__(self, pipe: Pipe, opening: bytes) -> None:
        self._pipe = pipe
        self._opening = json.loads(opening)
        self.refused = False

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        token = self._opening["token"]
        return () if token is None else ((HEADER, token),)

    def time_remaining(self) -> float | None:
        remaining_s: float | None = self._opening["remaining_s"]
        return remaining_s

    async def read(self) -> Any:
        try:
            message = await self._pipe.receive()
        except (Broken, Refused):
            return EOF
        if message is None:
            return EOF
        try:
            return pb.StreamRequest.FromString(message)
        except DecodeError:
            return ServeError("BAD_REQUEST", f"{len(message)} bytes are not the message that the contract says")

    async def write(self, message: bytes) -> None:
        try:
            await self._pipe.send(message)
        except (Broken, Refused):
            raise grpc.aio.UsageError("nobody is there any more") from None

    async def abort(self, code: Any, message: str, trailing: Any) -> None:
        self.refused = True
        self._pipe.refuse(dict(trailing)[DETAILS])
