"""The service of Triton's protocol, at the streaming endpoint's own port."""

from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any, TypeVar

from dnc_serve.handler.api.access import Access
from dnc_serve.handler.api.answering import Context, answer
from dnc_serve.handler.api.inference_stream import InferenceStream
from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.api.ordered_stream import OpenStreams
from dnc_serve.handler.api.sequences import VERSION, Sequences
from dnc_serve.proto.inference import inference_pb2 as pb
from dnc_serve.proto.inference import inference_pb2_grpc

Answer = TypeVar("Answer")

PLATFORM = "dnc-serve"
ENDPOINT = "inference"
EXTENSIONS = ("sequence", "sequence(string_id)", "model_configuration", "parameters", "statistics")


class InferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers what clients of Triton ask a server of sequences."""

    def __init__(self, operations: Operations, access: Access, streams: OpenStreams) -> None:
        self._operations = operations
        self._access = access
        self._streams = streams
        self._sequences = Sequences(operations)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse | None:
        async def live(caller: Caller) -> pb.ServerLiveResponse:
            return pb.ServerLiveResponse(live=True)

        return await self._answer(context, request, live)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse | None:
        async def ready(caller: Caller) -> pb.ServerReadyResponse:
            return pb.ServerReadyResponse(ready=not self._operations.draining)

        return await self._answer(context, request, ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse | None:
        async def ready(caller: Caller) -> pb.ModelReadyResponse:
            self._sequences.check_model(request.name, request.version)
            return pb.ModelReadyResponse(ready=not self._operations.draining)

        return await self._answer(context, request, ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse | None:
        async def metadata(caller: Caller) -> pb.ServerMetadataResponse:
            return pb.ServerMetadataResponse(name="dnc-serve", version=version("dnc-serve"), extensions=EXTENSIONS)

        return await self._answer(context, request, metadata)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse | None:
        async def metadata(caller: Caller) -> pb.ModelMetadataResponse:
            self._sequences.check_model(request.name, request.version)
            return model_metadata(self._sequences)

        return await self._answer(context, request, metadata)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse | None:
        async def config(caller: Caller) -> pb.ModelConfigResponse:
            self._sequences.check_model(request.name, request.version)
            return pb.ModelConfigResponse(config=model_config(self._sequences, self._operations))

        return await self._answer(context, request, config)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse | None:
        async def statistics(caller: Caller) -> pb.ModelStatisticsResponse:
            if request.name:
                self._sequences.check_model(request.name, request.version)
            return pb.ModelStatisticsResponse(model_stats=[model_statistics(self._sequences, self._operations)])

        return await self._answer(context, request, statistics)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse | None:
        return await self._answer(context, request, lambda caller: self._sequences.infer(request, caller))

    async def ModelStreamInfer(self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:
        async def serve(caller: Caller) -> None:
            with self._streams.open() as register:
                stream = InferenceStream(self._operations, self._sequences, caller, context, self._streams)
                register(stream)
                await stream.serve()

        await self._answer(context, None, serve)

    async def _answer(
        self, context: Context, request: Any, call: Callable[[Caller], Awaitable[Answer]]
    ) -> Answer | None:
        return await answer(self._operations, self._access, context, request, call, ENDPOINT)


def model_metadata(sequences: Sequences) -> pb.ModelMetadataResponse:
    """The model's name and tensors."""
    answer = pb.ModelMetadataResponse(name=sequences.name, versions=[VERSION], platform=PLATFORM)
    for tensors, tensor in ((answer.inputs, sequences.input), (answer.outputs, sequences.output)):
        tensors.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return answer


def model_config(sequences: Sequences, operations: Operations) -> pb.ModelConfig:
    """What load generators go by: a model of sequences, whose first axis is time and not a batch."""
    config = pb.ModelConfig(name=sequences.name, platform=PLATFORM, backend=PLATFORM, max_batch_size=0)
    for tensors, tensor in ((config.input, sequences.input), (config.output, sequences.output)):
        tensors.add(name=tensor.name, data_type=pb.DataType.Value(f"TYPE_{tensor.datatype}"), dims=tensor.shape)
    limits = operations.engine.config
    config.sequence_batching.max_sequence_idle_microseconds = int(limits.idle_timeout_s * 1e6)
    config.sequence_batching.oldest.max_candidate_sequences = limits.max_sessions
    config.model_transaction_policy.decoupled = False
    return config


def model_statistics(sequences: Sequences, operations: Operations) -> pb.ModelStatistics:
    """What the metrics have counted, at all endpoints, since the server started."""
    count = operations.metrics.total
    statistics = pb.ModelStatistics(
        name=sequences.name,
        version=VERSION,
        inference_count=int(count("dnc_timesteps_total")),
        execution_count=int(count("dnc_tick_duration_seconds_count")),
    )
    kinds = statistics.inference_stats
    chunks = int(count("dnc_step_duration_seconds_count"))
    kinds.success.CopyFrom(_duration(chunks, count("dnc_step_duration_seconds_sum")))
    kinds.fail.count = int(count("dnc_errors_total"))
    kinds.queue.CopyFrom(_duration(chunks, count("dnc_queue_wait_seconds_sum")))
    kinds.compute_infer.CopyFrom(_duration(chunks, count("dnc_tick_duration_seconds_sum")))
    for kind in (kinds.compute_input, kinds.compute_output):  # part of the rest; load generators want the same counts
        kind.count = chunks
    return statistics


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=int(seconds * 1e9))
