"""Messages on their way in and out.

What can't be read is made a refusal: gRPC itself would answer UNKNOWN, and end a stream with all on it. What was
encoded before, for several who get the same, is sent as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from dnc_serve.handler.errors import ServeError

ENCODES = ("Stream", "WatchMemory", "ModelStreamInfer")


class ReadableServer:
    """Stands before a gRPC server while generated code adds its handlers."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Not needed: registered handlers are found first."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Adds handlers that get a `ServeError` for a message that can't be read; those of `ENCODES` answer with
        encoded ones."""
        readable = {
            name: handler._replace(
                request_deserializer=_or_refusal(handler.request_deserializer),
                response_serializer=None if name in ENCODES else handler.response_serializer,
            )
            for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, readable),))


def _or_refusal(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(message: bytes) -> Any:
        try:
            return deserialize(message)
        except DecodeError:
            return ServeError("BAD_REQUEST", f"{len(message)} bytes are not the message that the contract says")

    return read
