"""TorchServe's own door of a server in this process."""

import json
from typing import Any

from ts.context import Context, RequestProcessor

from dnc_serve.handler.api.torchserve_calls import answer
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door


def ask_json(door: Door, body: str) -> Any:
    """The answer to one call in JSON, as HTTP callers get it."""
    context = Context("dnc", "", {}, 1, None, "0.12.0")
    context.request_processor = [RequestProcessor({"content-type": "application/json"})]
    [answered] = answer(lambda calls: door.server.call(calls, TIMEOUT), [{"body": body.encode()}], context)
    return json.loads(answered)


def ask(door: Door, call: pb.Call, timeout_s: float = TIMEOUT) -> pb.CallResult:
    """The answer to one call in protobuf, given within so many seconds."""
    [result] = door.server.call([call], timeout_s)
    return result
