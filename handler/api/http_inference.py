"""The HTTP endpoint, for clients that have no gRPC: Triton's protocol under /v2, our own calls under /v1."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dnc_serve import __version__
from dnc_serve.handler.api.access import Access
from dnc_serve.handler.api.administration import Administration
from dnc_serve.handler.api.http_calls import HttpCalls, described
from dnc_serve.handler.api.http_messages import JSON_LENGTH, answer_of, read_request
from dnc_serve.handler.api.inference_models import EXTENSIONS, InferenceModels, model_config, model_metadata
from dnc_serve.handler.api.logs import log_answer
from dnc_serve.handler.api.openapi import openapi
from dnc_serve.handler.api.operations import Caller
from dnc_serve.handler.api.refusals import refusal_for
from dnc_serve.handler.api.sequences import Sequences
from dnc_serve.handler.api.status import http_status_of
from dnc_serve.handler.errors import ServeError

logger = logging.getLogger(__name__)

HTTP_EXTENSIONS = (*EXTENSIONS, "binary_tensor_data")
Answer = Callable[[Request, Caller], Awaitable[Response]]


class HttpInference:
    """Answers HTTP calls by what answers those of gRPC."""

    def __init__(self, inference: InferenceModels, administration: Administration, access: Access) -> None:
        self._models = inference.models
        self._inference = inference
        self._access = access
        model = "/v2/models/{model}"
        routes = [Route("/openapi.json", self._openapi), Route("/v2/health/live", self._live)]
        routes += [Route("/v2/health/ready", self._route(self._ready)), Route("/v2", self._route(self._server))]
        routes += [
            Route("/v2/repository/index", self._route(self._index), methods=["POST"]),
            Route("/v2/models/stats", self._route(self._all_statistics)),
        ]
        for path in (model, model + "/versions/{version}"):
            routes += [
                Route(path, self._route(self._metadata)),
                Route(f"{path}/ready", self._route(self._model_ready)),
                Route(f"{path}/config", self._route(self._config)),
                Route(f"{path}/stats", self._route(self._statistics)),
                Route(f"{path}/infer", self._route(self._infer), methods=["POST"]),
            ]
        routes += HttpCalls(inference.models, administration, self._body).routes(self._route)
        self.application = Starlette(routes=routes, exception_handlers={404: _no_such_path, 405: _no_such_path})

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi(self._inference.all))

    async def _live(self, request: Request) -> Response:
        return Response()

    async def _ready(self, request: Request, caller: Caller) -> Response:
        return Response(status_code=503 if self._models.draining else 200)

    async def _server(self, request: Request, caller: Caller) -> Response:
        extensions = [*HTTP_EXTENSIONS]
        return JSONResponse({"name": "dnc-serve", "version": __version__, "extensions": extensions})

    async def _metadata(self, request: Request, caller: Caller) -> Response:
        return _json(model_metadata(self._named(request)))

    async def _model_ready(self, request: Request, caller: Caller) -> Response:
        self._named(request)
        return await self._ready(request, caller)

    async def _config(self, request: Request, caller: Caller) -> Response:
        return _json(model_config(self._named(request)))

    async def _statistics(self, request: Request, caller: Caller) -> Response:
        return _json(self._inference.statistics(*_model_of(request)))

    async def _all_statistics(self, request: Request, caller: Caller) -> Response:
        return _json(self._inference.statistics("", ""))

    async def _index(self, request: Request, caller: Caller) -> Response:
        return JSONResponse(_as_json(self._inference.index())["models"])

    async def _infer(self, request: Request, caller: Caller) -> Response:
        self._named(request)
        if encoding := request.headers.get("content-encoding"):
            raise ServeError("BAD_REQUEST", f"content-encoding is {encoding!r}, expected none")
        body = await self._body(request)
        asked = read_request(*_model_of(request), body, request.headers.get(JSON_LENGTH))
        sequences = await self._inference.of_request(asked.message, caller)
        answer, json_length = answer_of(asked, await sequences.infer(asked.message, caller))
        if json_length is None:
            return Response(answer, media_type="application/json")
        return Response(answer, headers={JSON_LENGTH: str(json_length)}, media_type="application/octet-stream")

    def _named(self, request: Request) -> Sequences:
        return self._inference.named(*_model_of(request))

    async def _body(self, request: Request) -> bytes:
        limit, body = int(self._models.default.engine.config.max_message_bytes), bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise ServeError("BAD_REQUEST", f"the request takes more than {limit} bytes (max_message_bytes)")
        return bytes(body)

    def _route(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """Finds out who calls, and turns what is raised into a status."""

        async def answered(request: Request) -> Response:
            started_at = time.perf_counter()
            try:
                self._check_origin(request)
                caller = Caller(self._access.grant_of(request.headers.items()), "inference")
                response = await caller.grant.while_good(answer(request, caller))
                log_answer(None, caller.owner, caller.endpoint, started_at)
                return response
            except Exception as error:
                refused = refusal_for(error, None, self._models.metrics)
            headers = {}
            if refused.retry_after_s is not None:
                headers["retry-after"] = str(max(1, round(refused.retry_after_s)))
            return JSONResponse(described(refused), http_status_of(refused), headers)

        return answered

    def _check_origin(self, request: Request) -> None:
        """Where no token is asked for, a page of the web must not use a browser on this machine to come in."""
        if self._access.required:
            return
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") != "none":
            raise ServeError("PERMISSION_DENIED", "without tokens, this endpoint is not for pages of the web")


def _model_of(request: Request) -> tuple[str, str]:
    """The name and the version in the path."""
    return request.path_params["model"], request.path_params.get("version", "")


def _as_json(message: Message) -> dict[str, Any]:
    """As the protocol has it in JSON, where whole numbers are numbers: protobuf makes those of 64 bits texts."""
    as_json: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return dict(_numbers(as_json))


def _numbers(value: Any, name: str = "") -> Any:
    match value:
        case dict():
            return {key: _numbers(one, key) for key, one in value.items()}
        case list():
            return [_numbers(one, name) for one in value]
        case str() if value.lstrip("-").isdecimal() and name not in ("name", "version", "versions"):
            return int(value)
        case _:
            return value


def _json(message: Message) -> Response:
    return JSONResponse(_as_json(message))


async def _no_such_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    message = {"error": f"{request.method} {request.url.path} is nothing that this endpoint answers: see /openapi.json"}
    return JSONResponse(message, status)
