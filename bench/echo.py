"""The floor of the transport: a streaming endpoint that gives each message back, and does nothing else.

It is laid out as the worker is: `grpc.aio` over uvloop, in a thread of a process of its own. Says its address, and
serves until its standard input ends.
"""

import sys
import threading
from typing import Any

import grpc
import uvloop


class Echo(grpc.GenericRpcHandler):
    """Bytes in, the same bytes out, whatever the method is called."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self.give_back)

    async def give_back(self, messages: Any, context: Any) -> None:
        async for message in messages:
            await context.write(message)


async def serve() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Echo(),))
    print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    await server.start()
    await server.wait_for_termination()


threading.Thread(target=lambda: uvloop.run(serve()), name="echo", daemon=True).start()
sys.stdin.read()
