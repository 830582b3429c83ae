"""TorchServe's own endpoint: rows in, each a `Call` as protobuf or as JSON, and as many answers out, in its language.

    POST /predictions/dnc   {"step": {"session_id": "s", "inputs": [[0, 1]]}}   → {"step": {"result": {…}}}
    gRPC Predictions        input["data"] = Call                                → CallResult

A status that a handler sets reaches HTTP callers only, so it also stands in the answer. JSON is told from protobuf by
its first byte: no `Call` begins with `{`.
"""

import logging
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from dnc_serve.handler.api.call_json import call_from_json, to_json
from dnc_serve.handler.api.status import HTTP_STATUS, status_of
from dnc_serve.handler.config import TORCHSERVE_MAX_BYTES
from dnc_serve.handler.errors import ServeError, internal_error
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

logger = logging.getLogger(__name__)

HTTP_BODY = "body"  # how TorchServe names the body of an HTTP request

Row = dict[str, Any]
CallServer = Callable[[list[pb.Call | ServeError]], list[pb.CallResult]]


def answer(call_server: CallServer, rows: list[Row], context: Any) -> list[bytes]:
    """Decodes each row, has all answered together, and encodes each answer. Never raises."""
    calls: list[pb.Call | ServeError] = []
    as_json: list[bool] = []
    for index, row in enumerate(rows):
        content_type = _header(context, index, "content-type")
        calls.append(_decoded(row, content_type, _header(context, index, "authorization")))
        as_json.append(_speaks_json(row, content_type))
    try:
        results = call_server(calls)
    except Exception:
        logger.exception("a batch failed")
        results = [pb.CallResult(status=status_of(internal_error())) for _ in rows]
    return [_encoded(result, as_json[index], context, index) for index, result in enumerate(results)]


def _decoded(row: Row, content_type: str, authorization: str) -> pb.Call | ServeError:
    """The call of a row; a refusal if it can't be read, which concerns this row alone."""
    try:
        payload = _payload(row, content_type)
        if isinstance(payload, dict) or _is_json(payload, content_type):
            call = call_from_json(payload)
        else:
            call = pb.Call.FromString(payload)
    except DecodeError:
        return ServeError("BAD_REQUEST", f"{len(payload)} bytes that are neither a JSON object nor a protobuf Call")
    except ServeError as exc:
        return exc
    except Exception:
        logger.exception("a row could not be read")
        return ServeError("BAD_REQUEST", "the call could not be read")
    scheme, _, token = authorization.partition(" ")
    if not call.token and scheme.lower() == "bearer":
        call.token = token.strip()
    return call


def _payload(row: Row, content_type: str) -> Any:
    """What was sent: the body over HTTP; over gRPC one input, whatever its name."""
    if "form-urlencoded" in content_type or "multipart" in content_type:
        raise ServeError(
            "BAD_REQUEST",
            f"content type {content_type.split(';')[0]!r}, expected application/json: "
            "curl -H 'content-type: application/json' --data …",
        )
    values = [row[HTTP_BODY]] if HTTP_BODY in row else list(row.values())
    if len(values) != 1:
        raise ServeError("BAD_REQUEST", f"a request of {len(values)} parts, expected one part with one call")
    return _raw(values[0])


def _raw(value: Any) -> Any:
    """A part as bytes; as it is where TorchServe has decoded JSON itself, which it does unless told otherwise."""
    if isinstance(value, str):
        return value.encode()
    return bytes(value) if isinstance(value, bytearray) else value


def _is_json(payload: Any, content_type: str) -> bool:
    return not isinstance(payload, bytes) or "json" in content_type or payload.startswith(b"{")


def _speaks_json(row: Row, content_type: str) -> bool:
    """Whether the caller gets JSON: if that is what was sent, and over HTTP also if nobody could tell what it was."""
    if "protobuf" in content_type or "octet-stream" in content_type:
        return False
    return bool(content_type) or HTTP_BODY in row or any(_is_json(_raw(value), content_type) for value in row.values())


def _encoded(result: pb.CallResult, as_json: bool, context: Any, index: int) -> bytes:
    code = result.status.code
    try:
        encoded = to_json(result) if as_json else result.SerializeToString()
    except Exception:
        logger.exception("an answer could not be written")
        return _encoded_error(ServeError("INTERNAL", "the answer could not be written"), as_json, context, index)
    if len(encoded) > TORCHSERVE_MAX_BYTES:
        too_large = ServeError(
            "STATE_TOO_LARGE",
            f"the answer takes {len(encoded)} bytes, expected at most {TORCHSERVE_MAX_BYTES}:"
            " use the streaming endpoint",
        )
        return _encoded_error(too_large, as_json, context, index)
    context.set_response_content_type(index, "application/json" if as_json else "application/x-protobuf")
    context.set_response_status(code=HTTP_STATUS.get(code, 500), phrase=code_pb2.Code.Name(code), idx=index)
    return encoded


def _encoded_error(error: ServeError, as_json: bool, context: Any, index: int) -> bytes:
    return _encoded(pb.CallResult(status=status_of(error)), as_json, context, index)


def _header(context: Any, index: int, name: str) -> str:
    """A header of the request, whatever its case; empty over gRPC, which passes none on."""
    for key, value in context.get_all_request_header(index).items():
        if key.lower() == name and isinstance(value, str):
            return value
    return ""
