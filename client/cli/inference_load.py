"""The loads of `dnc bench` in the messages of Triton's protocol, for servers that speak no other."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnc_serve.client.cli.load import Exchange, Figures, Load, Server, Span, lockstep, run_loop
from dnc_serve.client.transport import Hosts
from dnc_serve.proto.inference import inference_pb2 as pb
from dnc_serve.proto.inference import inference_pb2_grpc

CALL = "/inference.GRPCInferenceService/ModelStreamInfer"


@dataclass(frozen=True)
class InferenceModel:
    """A model of sequences: its one input, whose last size that may be any is that of time."""

    name: str
    platform: str
    input: str
    shape: Sequence[int]

    def shape_of(self, timesteps: int) -> list[int]:
        """What a chunk of one sequence has. Raises RuntimeError for a model that takes no chunks."""
        sizes, free = [*self.shape], [axis for axis, size in enumerate(self.shape) if size < 0]
        for axis in free:
            sizes[axis] = timesteps if axis == free[-1] else 1
        if not free and timesteps > 1:
            raise RuntimeError(f"the model {self.name!r} takes inputs of shape {sizes}, and no chunks")
        return sizes


def inference_model(server: Server, name: str) -> InferenceModel:
    """The model as the server describes it. Raises DncError, and RuntimeError for one that isn't of one input FP32."""

    async def ask() -> InferenceModel:
        hosts = Hosts(server.address, server.token, server.tls)
        try:
            async with hosts.translated(server.address):
                stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(hosts.channel(server.address))
                asked = pb.ModelMetadataRequest(name=name)
                found = await stub.ModelMetadata(asked, metadata=hosts.metadata())
        finally:
            await hosts.close()
        tensors = [f"{tensor.name} {tensor.datatype}" for tensor in found.inputs]
        if len(tensors) != 1 or found.inputs[0].datatype != "FP32":
            raise RuntimeError(f"the model {name!r} takes {', '.join(tensors)}; expected one input of FP32")
        return InferenceModel(found.name, found.platform, found.inputs[0].name, [*found.inputs[0].shape])

    return run_loop(ask())


def inference_load(server: Server, model: InferenceModel, load: Load, span: Span) -> Figures:
    """What the callers see, each of a sequence on a stream of its own, which ends with the load.

    Raises DncError, and RuntimeError for a chunk that was refused.
    """
    return run_loop(_inference_load(server, model, load, span))


async def _inference_load(server: Server, model: InferenceModel, load: Load, span: Span) -> Figures:
    hosts = Hosts(server.address, server.token, server.tls)
    channel: Any = hosts.channel(server.address)
    first = random.randrange(1 << 20, 1 << 62)  # not a sequence of an earlier load
    try:
        async with hosts.translated(server.address):
            streams = [channel.stream_stream(CALL)(metadata=hosts.metadata()) for _ in range(load.sessions)]
            sequences = [_Sequence(stream, model, first + n, load.chunk) for n, stream in enumerate(streams)]
            for sequence in sequences:
                await sequence.exchange(start=True)
            callers: list[Exchange] = [sequence.exchange for sequence in sequences]
            figures = await lockstep(callers, load.chunk, span, server.pids)
            for sequence in sequences:
                await sequence.exchange(end=True)
            for stream in streams:
                await stream.done_writing()
                await stream.read()
    finally:
        await hosts.close()
    return figures


class _Sequence:
    def __init__(self, stream: Any, model: InferenceModel, number: int, timesteps: int) -> None:
        self._stream = stream
        shape = model.shape_of(timesteps)
        values = np.random.default_rng(7).integers(0, 2, math.prod(shape)).astype("<f4")
        self._request = pb.ModelInferRequest(model_name=model.name, raw_input_contents=[values.tobytes()])
        self._request.inputs.add(name=model.input, datatype="FP32", shape=shape)
        self._request.parameters["sequence_id"].int64_param = number

    async def exchange(self, start: bool = False, end: bool = False) -> None:
        """One chunk there, its answer back."""
        self._request.parameters["sequence_start"].bool_param = start
        self._request.parameters["sequence_end"].bool_param = end
        await self._stream.write(self._request.SerializeToString())
        reply = await self._stream.read()
        if not isinstance(reply, bytes):
            raise RuntimeError("the server ended a stream")
        if error := pb.ModelStreamInferResponse.FromString(reply).error_message:
            raise RuntimeError(f"the server refused a chunk: {error}")
