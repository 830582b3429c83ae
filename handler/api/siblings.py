"""The other workers of a machine, as one of them reaches them: by sockets that only the server's user can open.

Beside the contract's calls a worker takes another one there: what sessions a token has. Streams have a line of
their own (`relay.py`).
"""

import asyncio
import struct
from collections.abc import Awaitable
from functools import reduce
from typing import Any
from urllib.parse import quote

import grpc
from google.rpc import status_pb2

from dnc_serve.handler.api.access import HEADER, Holding
from dnc_serve.handler.api.relay import Line, Pipe
from dnc_serve.handler.api.status import DETAILS, code_of, error_of, status_of
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.place import Place
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.inference import inference_pb2_grpc
from dnc_serve.proto.targets import DIRECTLY

SERVICE = "dnc.workers.Siblings"
COUNT = "Count"
VERSIONS = "Versions"
HELD = "<QQ"  # what it answers: sessions, and bytes
RETRY_S = 0.2  # a worker that was killed is back in seconds
NO_LIMIT = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_SOON_BACK = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500))


def unreachable(worker: int) -> ServeError:
    """What is told of a call, or a message, that another worker has not answered."""
    return ServeError(
        "STORE_UNAVAILABLE",
        f"worker {worker} of this server doesn't answer; whether this was applied is not known, ask again",
        retry_after_s=RETRY_S,
    )


def refusal_of(error: grpc.aio.AioRpcError, worker: int) -> ServeError:
    """What another worker has refused a call with."""
    details = dict(error.trailing_metadata() or ()).get(DETAILS)
    return unreachable(worker) if details is None else error_of(status_pb2.Status.FromString(bytes(details)))


class Siblings:
    """The way to the other workers."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._lines: dict[int, Line] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._held: dict[tuple[int, str], Holding] = {}

    def stub(self, worker: int) -> dnc_pb2_grpc.DncServiceStub:
        """The contract's calls of another worker."""
        return dnc_pb2_grpc.DncServiceStub(self._channel(worker))

    def inference(self, worker: int) -> inference_pb2_grpc.GRPCInferenceServiceStub:
        """Those of Triton's protocol."""
        return inference_pb2_grpc.GRPCInferenceServiceStub(self._channel(worker))

    def pipe(self, worker: int, opening: bytes) -> Pipe:
        """A client's stream to another worker, whose `PipeContext` gets the opening."""
        line = self._lines.get(worker)
        if line is None or line.broken:
            line = self._lines[worker] = Line()
            connecting = asyncio.ensure_future(self._connect(line, worker))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)
        return line.open(opening)

    async def _connect(self, line: Line, worker: int) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: line, str(self.place.line(worker)))
        except OSError:  # it isn't there
            line.close()

    async def versions(self, worker: int, asked: bytes) -> bytes:
        """What another worker's `Administration.asked` answers. Raises what it refuses."""
        call: Any = self._channel(worker).unary_unary(f"/{SERVICE}/{VERSIONS}")
        try:
            answer: bytes = await call(asked)
        except grpc.aio.AioRpcError as error:
            raise refusal_of(error, worker) from None
        return answer

    async def held_by(self, owner: str) -> Holding:
        """What a token's sessions are at the others. Of one that is down, what they were when it was last asked: it
        makes none meanwhile."""
        held = await asyncio.gather(*(self._held_at(worker, owner) for worker in self.place.others))
        return reduce(Holding.plus, held, Holding())

    async def _held_at(self, worker: int, owner: str) -> Holding:
        call: Any = self._channel(worker).unary_unary(f"/{SERVICE}/{COUNT}")
        try:
            answer = await call(owner.encode(), timeout=5.0)
        except grpc.aio.AioRpcError as error:
            if (known := self._held.get((worker, owner))) is None:
                raise refusal_of(error, worker) from None
            return known
        self._held[worker, owner] = held = Holding(*struct.unpack(HELD, answer))
        return held

    def _channel(self, worker: int) -> grpc.aio.Channel:
        if worker not in self._channels:
            options = [*DIRECTLY, *NO_LIMIT, *_SOON_BACK]
            self._channels[worker] = grpc.aio.insecure_channel(address_of(self.place, worker), options=options)
        return self._channels[worker]

    async def close(self) -> None:
        """Ends what is under way."""
        for connecting in self._connecting:
            connecting.cancel()
        for line in self._lines.values():
            line.close()
        for channel in self._channels.values():
            await channel.close()


def address_of(place: Place, worker: int) -> str:
    """A worker's door, as gRPC writes it."""
    return f"unix:{quote(str(place.door(worker)))}"


async def passed_on(call: Any, worker: int, context: Any, *, encodes: bool = False) -> Any:
    """What another worker answers to a call, in one message or in several, given to the caller, a refusal included."""
    try:
        if isinstance(call, Awaitable):
            return await call
        async for message in call:
            await context.write(message.SerializeToString() if encodes else message)
        return None
    except grpc.aio.AioRpcError as error:
        refused = refusal_of(error, worker)
    details = ((DETAILS, status_of(refused).SerializeToString()),)
    await context.abort(code_of(refused), refused.message, details)
    return None


def as_called(context: Any) -> dict[str, Any]:
    """A caller's token and deadline, for a call in the caller's place."""
    metadata = tuple((key, value) for key, value in context.invocation_metadata() or () if key == HEADER)
    return {"metadata": metadata, "timeout": context.time_remaining()}
