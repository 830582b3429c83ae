"""The floor of the transport: a streaming door that gives each message back, and does nothing else.

It is laid out as the worker is: `grpc.aio` over uvloop, in a thread of a process of its own.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

LOOPBACK = "127.0.0.1"


def serve_echo(say: Any) -> None:
    """Says its address, and serves until the process is ended."""
    thread = threading.Thread(target=lambda: uvloop.run(_serve(say)), name="echo", daemon=True)
    thread.start()
    thread.join()


async def _serve(say: Any) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Echo(),))
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    say.send(f"{LOOPBACK}:{port}")
    await asyncio.Event().wait()


class _Echo(grpc.GenericRpcHandler):
    """Bytes in, the same bytes out, whatever the method is called."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(_give_back)


async def _give_back(messages: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
    async for message in messages:
        await context.write(message)
