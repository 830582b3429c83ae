"""The service of Triton's protocol, at the streaming endpoint's own port."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from dnc_serve import __version__
from dnc_serve.handler.api.access import Access
from dnc_serve.handler.api.answering import Context, answer
from dnc_serve.handler.api.inference_models import EXTENSIONS, InferenceModels, model_config, model_metadata
from dnc_serve.handler.api.inference_stream import InferenceStream
from dnc_serve.handler.api.operations import Caller
from dnc_serve.handler.api.ordered_stream import OpenStreams
from dnc_serve.handler.api.sequences import other_owner
from dnc_serve.handler.api.siblings import Siblings, as_called, passed_on
from dnc_serve.proto.inference import inference_pb2 as pb
from dnc_serve.proto.inference import inference_pb2_grpc

Answer = TypeVar("Answer")

ENDPOINT = "inference"


class InferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers what clients of Triton ask a server of sequences."""

    def __init__(
        self,
        inference: InferenceModels,
        access: Access,
        streams: OpenStreams,
        siblings: Siblings | None = None,
    ) -> None:
        self._siblings = siblings
        self._models = inference.models
        self._inference = inference
        self._access = access
        self._streams = streams

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse | None:
        async def live(caller: Caller) -> pb.ServerLiveResponse:
            return pb.ServerLiveResponse(live=True)

        return await self._answer(context, request, live)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse | None:
        async def ready(caller: Caller) -> pb.ServerReadyResponse:
            return pb.ServerReadyResponse(ready=not self._models.draining)

        return await self._answer(context, request, ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse | None:
        async def ready(caller: Caller) -> pb.ModelReadyResponse:
            self._inference.named(request.name, request.version)
            return pb.ModelReadyResponse(ready=not self._models.draining)

        return await self._answer(context, request, ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse | None:
        async def metadata(caller: Caller) -> pb.ServerMetadataResponse:
            return pb.ServerMetadataResponse(name="dnc-serve", version=__version__, extensions=EXTENSIONS)

        return await self._answer(context, request, metadata)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse | None:
        async def metadata(caller: Caller) -> pb.ModelMetadataResponse:
            return model_metadata(self._inference.named(request.name, request.version))

        return await self._answer(context, request, metadata)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse | None:
        async def config(caller: Caller) -> pb.ModelConfigResponse:
            return pb.ModelConfigResponse(config=model_config(self._inference.named(request.name, request.version)))

        return await self._answer(context, request, config)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse | None:
        async def statistics(caller: Caller) -> pb.ModelStatisticsResponse:
            return self._inference.statistics(request.name, request.version)

        return await self._answer(context, request, statistics)

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse | None:
        async def index(caller: Caller) -> pb.RepositoryIndexResponse:
            return self._inference.index()

        return await self._answer(context, request, index)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse | None:
        if (owner := other_owner(request, self._siblings)) is not None:
            assert self._siblings is not None
            call = self._siblings.inference(owner).ModelInfer(request, **as_called(context))
            answered: pb.ModelInferResponse | None = await passed_on(call, owner, context)
            return answered

        async def infer(caller: Caller) -> pb.ModelInferResponse:
            return await (await self._inference.of_request(request, caller)).infer(request, caller)

        return await self._answer(context, request, infer)

    async def ModelStreamInfer(self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:
        async def serve(caller: Caller) -> None:
            with self._streams.open() as register:
                stream = InferenceStream(self._inference, caller, context, self._streams, self._siblings)
                register(stream)
                await stream.serve()

        await self._answer(context, None, serve)

    async def _answer(
        self, context: Context, request: Any, call: Callable[[Caller], Awaitable[Answer]]
    ) -> Answer | None:
        return await answer(self._models.metrics, self._access, context, request, call, ENDPOINT)
