"""Our own calls over HTTP, in the JSON that TorchServe's endpoint takes too; steps and memories as server-sent events.

POST /v1/call                   any call of dnc.v1: {"create_session": {"session_id": "s"}}
POST /v1/sessions/{id}/steps    {"inputs": [[…], …]}, an event `chunk` for every ?chunk=N timesteps
GET  /v1/sessions/{id}/memory   an event `frame` for each look: ?names=memory,usage_vector&max_cells=1024
"""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from dnc_serve.handler.api.administration import Administration
from dnc_serve.handler.api.arrays import decode_inputs, encode_array
from dnc_serve.handler.api.call_json import call_from_json, call_of, object_from_json, to_json
from dnc_serve.handler.api.models import Models
from dnc_serve.handler.api.operations import Caller
from dnc_serve.handler.api.refusals import refusal_for
from dnc_serve.handler.api.rows import dispatch
from dnc_serve.handler.api.watch import FeedsOfModels, watch
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.metrics import Metrics
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

logger = logging.getLogger(__name__)

Body = Callable[[Request], Awaitable[bytes]]
Endpoint = Callable[[Request], Awaitable[Response]]
Answer = Callable[[Request, Caller], Awaitable[Response]]


class HttpCalls:
    """Answers by what answers the calls of gRPC. `body` reads a request's body within the limits."""

    def __init__(self, models: Models, administration: Administration, body: Body) -> None:
        self._models = models
        self._administration = administration
        self._body = body
        self._feeds = FeedsOfModels()

    def routes(self, route: Callable[[Answer], Endpoint]) -> list[Route]:
        """`route` finds out who calls, and turns what is raised into a status."""
        return [
            Route("/v1/call", route(self._call), methods=["POST"]),
            Route("/v1/sessions/{id}/steps", route(self._steps), methods=["POST"]),
            Route("/v1/sessions/{id}/memory", route(self._memory)),
        ]

    async def _call(self, request: Request, caller: Caller) -> Response:
        result = await dispatch(self._models, self._administration, call_from_json(await self._body(request)), caller)
        return Response(to_json(result), media_type="application/json")

    async def _steps(self, request: Request, caller: Caller) -> Response:
        """With a `position` in the body the request may be sent again: what was applied is answered as it was."""
        timesteps = _whole(request, "chunk", 1)
        fields, values = object_from_json(await self._body(request))
        fields["session_id"] = request.path_params["id"]
        chunk = call_of({"step": {"chunk": fields}}, values).step.chunk
        operations = await self._models.of(chunk.session_id)
        spec, config = operations.artifact.inputs, operations.engine.config
        inputs = decode_inputs(chunk.inputs, spec, config.max_chunk_timesteps)

        async def results() -> AsyncIterator[pb.ChunkResult]:
            for start in range(0, len(inputs), timesteps):
                piece = pb.Chunk()
                piece.CopyFrom(chunk)
                piece.inputs.CopyFrom(encode_array(np.ascontiguousarray(inputs[start : start + timesteps])))
                if chunk.HasField("position"):
                    piece.position = chunk.position + start
                piece.reset_experience = chunk.reset_experience and not start
                if start and chunk.HasField("experience"):
                    piece.experience = chunk.experience + chunk.reset_experience
                yield (await operations.step(pb.StepRequest(chunk=piece), caller)).result

        return await _events("chunk", results(), caller, self._models.metrics)

    async def _memory(self, request: Request, caller: Caller) -> Response:
        names = [name for name in request.query_params.get("names", "").split(",") if name]
        wanted = pb.WatchMemoryRequest(
            session_id=request.path_params["id"],
            names=names,
            max_cells=_whole(request, "max_cells", 1024),
            max_frames_per_second=_whole(request, "max_frames_per_second", 10),
        )

        async def frames() -> AsyncIterator[pb.WatchMemoryResponse]:
            operations = await self._models.of(wanted.session_id)
            async for frame in watch(operations, self._feeds.of(operations), wanted, caller):
                yield pb.WatchMemoryResponse.FromString(frame)

        return await _events("frame", frames(), caller, self._models.metrics)


async def _events(name: str, messages: AsyncIterator[Message], caller: Caller, metrics: Metrics) -> Response:
    """Each message as an event; what is refused at once has a status of its own, and what is later an event `error`."""
    first = await anext(messages)

    async def events() -> AsyncIterator[bytes]:
        try:
            yield _event(name, to_json(first))
            while True:
                message = await caller.grant.while_good(anext(messages))
                yield _event(name, to_json(message))
        except StopAsyncIteration:
            yield _event("end", b"{}")
        except Exception as error:
            yield _event("error", json.dumps(described(refusal_for(error, None, metrics))).encode())

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def described(refused: ServeError) -> dict[str, Any]:
    """A refusal in JSON."""
    return {"error": refused.message, "reason": refused.reason, "metadata": refused.metadata}


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 31):
        raise ServeError("BAD_REQUEST", f"{name} is {text!r}, expected a whole number from 1 on", got=text)
    return int(text)
