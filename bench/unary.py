"""Load in the messages of other protocols, TorchServe's and Triton's, through bare stubs as ours has.

Their own stubs would collide with a user's, or want an environment of their own: the few fields that are used are
encoded here.
"""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import grpc

from dnc_serve.client.cli.load import AT_ONCE, Exchange, Figures, Server, Span, bits, lockstep, run_loop, some_at_once
from dnc_serve.handler.torchserve.archive import MODEL_NAME
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.targets import channel_options

PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
TRITON = "/inference.GRPCInferenceService"
NO_ERROR = b"\x12"  # with which a ModelStreamInferResponse begins that has no error message

Loading = Callable[[Any], Awaitable[Figures]]  # what is done on a channel


def field(number: int, value: bytes | int) -> bytes:
    """One field of a protobuf message: its tag, and a number, or a length and bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def only_field(message: bytes) -> bytes:
    """The value of a message that has one field, of bytes."""
    length_ends = next(at for at in range(1, len(message)) if message[at] < 0x80)
    return message[length_ends + 1 :]


def predictions(model: str, **inputs: bytes) -> bytes:
    """TorchServe's `PredictionsRequest`."""
    entries = (field(3, field(1, name.encode()) + field(2, value)) for name, value in inputs.items())
    return field(1, model.encode()) + b"".join(entries)


def infer(sequence: int, data: bytes, shape: Sequence[int], *, start: bool = False, end: bool = False) -> bytes:
    """Triton's `ModelInferRequest` for one sequence."""
    about = {"sequence_id": field(2, sequence), "sequence_start": field(1, start), "sequence_end": field(1, end)}
    parameters = (field(4, field(1, name.encode()) + field(2, value)) for name, value in about.items())
    tensor = field(1, b"INPUT") + field(2, b"FP32") + field(3, b"".join(map(varint, shape)))
    return field(1, b"dnc") + b"".join(parameters) + field(5, tensor) + field(7, data)


def handler_load(server: Server, model: str, rows: Sequence[Mapping[str, bytes]], chunk: int, span: Span) -> Figures:
    """Callers that go round their share of the rows, through a handler behind TorchServe; ours gives a status."""
    messages = [predictions(model, **row) for row in rows]

    async def load(channel: Any) -> Figures:
        call = channel.unary_unary(PREDICTIONS)

        async def ask_ours(message: bytes) -> None:
            result = pb.CallResult.FromString(only_field(await call(message)))
            if result.status.code:
                raise RuntimeError(f"the server refused a call: {result.status.message}")

        ask = ask_ours if model == MODEL_NAME else call
        return await lockstep(going_round(ask, messages), chunk, span, server.pids)

    return _on_channel(server, load)


def triton_load(server: Server, sessions: int, chunk: int, span: Span) -> Figures:
    """A lone sequence on a stream; several over unary calls, because many streams bring the server down."""
    data, shape = bits(chunk, server.input_size).tobytes(), (1, chunk, server.input_size)
    first = random.randrange(1 << 20, 1 << 62)  # a sequence of an earlier load must not be taken for one of this
    sequences = range(first, first + sessions)

    async def load(channel: Any) -> Figures:
        unary = channel.unary_unary(f"{TRITON}/ModelInfer")
        await some_at_once(unary, [infer(each, data, shape, start=True) for each in sequences])
        messages = [infer(each, data, shape) for each in sequences]
        exchanges = going_round(unary, messages)
        if sessions == 1:
            stream = channel.stream_stream(f"{TRITON}/ModelStreamInfer")()

            async def exchange() -> None:
                await stream.write(messages[0])
                reply = await stream.read()
                if not isinstance(reply, bytes) or not reply.startswith(NO_ERROR):
                    raise RuntimeError(f"Triton refused a call: {reply!r}")

            exchanges = [exchange]
        figures = await lockstep(exchanges, chunk, span, server.pids)
        # Those that don't end keep their places in the batcher.
        await some_at_once(unary, [infer(each, data, shape, end=True) for each in sequences])
        return figures

    return _on_channel(server, load)


def going_round(call: Callable[[bytes], Awaitable[object]], messages: Sequence[bytes]) -> list[Exchange]:
    """Some callers at most, each with messages of its own, one after the other."""
    callers = min(len(messages), AT_ONCE)

    def caller(first: int) -> Exchange:
        own = cycle(messages[first::callers])
        return lambda: call(next(own))

    return [caller(first) for first in range(callers)]


def _on_channel(server: Server, load: Loading) -> Figures:
    async def run() -> Figures:
        options = [*channel_options(server.address), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            return await load(channel)

    return run_loop(run())
