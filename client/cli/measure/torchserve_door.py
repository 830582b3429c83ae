"""The load on TorchServe's own gRPC door, and on any handler behind it.

TorchServe's stubs lie in its jar and would collide with a user's own, so its two messages are described here.
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from dnc_serve.client.cli.measure.load import bits, run_loop
from dnc_serve.client.cli.measure.lockstep import Exchange, Figures, Span, lockstep
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.targets import channel_options

PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
MODEL = "dnc"


def _messages() -> tuple[Any, Any]:
    """`PredictionsRequest` and `PredictionResponse` of TorchServe's inference.proto, as far as they are used."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="torchserve_door.proto", package="torchserve_door", syntax="proto3")
    request = file.message_type.add(name="PredictionsRequest")
    request.field.add(name="model_name", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry = request.nested_type.add(name="InputEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    request.field.add(
        name="input", number=3, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED,
        type_name=".torchserve_door.PredictionsRequest.InputEntry",
    )  # fmt: skip
    response = file.message_type.add(name="PredictionResponse")
    response.field.add(name="prediction", number=1, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    described = [
        pool.FindMessageTypeByName(f"torchserve_door.{name}") for name in ("PredictionsRequest", "PredictionResponse")
    ]
    made = [message_factory.GetMessageClass(descriptor) for descriptor in described]
    return made[0], made[1]


PredictionsRequest, PredictionResponse = _messages()
Predict = Callable[[Any], Any]


def door_load(address: str, callers: int, chunk: int, input_size: int, span: Span) -> Figures:
    """Callers with a session each, through our handler: protobuf `Call` in, `CallResult` out."""

    async def make(predict: Predict, caller: int) -> Exchange:
        session_id = f"door{caller}"
        await _ask(predict, pb.Call(create_session=pb.CreateSessionRequest(session_id=session_id, allow_existing=True)))
        inputs = bits(chunk, input_size)
        array = pb.Array(shape=inputs.shape, data=inputs.tobytes(), dtype=pb.DATA_TYPE_FLOAT32)
        call = pb.Call(step=pb.StepRequest(chunk=pb.Chunk(session_id=session_id, inputs=array)))
        return lambda: _ask(predict, call)

    return run_loop(_load(address, callers, chunk, span, make))


def handler_load(
    address: str, model: str, sessions: list[str], callers: int, chunk: int, input_size: int, span: Span
) -> Figures:
    """Callers that go round their share of the sessions, through a handler that takes `session` and `data`."""

    async def make(predict: Predict, caller: int) -> Exchange:
        data = bits(chunk, input_size).tobytes()
        own = sessions[caller::callers]
        turn = 0

        async def exchange() -> None:
            nonlocal turn
            session = own[turn % len(own)].encode()
            turn += 1
            await predict(PredictionsRequest(model_name=model, input={"session": session, "data": data}))

        return exchange

    return run_loop(_load(address, callers, chunk, span, make))


async def _load(address: str, callers: int, chunk: int, span: Span, make: Callable[[Predict, int], Any]) -> Figures:
    async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
        predict: Any = channel.unary_unary(
            PREDICTIONS,
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        exchanges = [await make(predict, caller) for caller in range(callers)]
        return await lockstep(exchanges, chunk, span)


async def _ask(predict: Predict, call: pb.Call) -> None:
    """Raises RuntimeError if the call was refused."""
    response = await predict(PredictionsRequest(model_name=MODEL, input={"data": call.SerializeToString()}))
    result = pb.CallResult.FromString(response.prediction)
    if result.status.code:
        raise RuntimeError(f"the server refused a call: {result.status.message}")
