"""The stream of Triton's protocol: chunks of one or many sequences, answered in order for each."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from dnc_serve.handler.api.inference_models import InferenceModels
from dnc_serve.handler.api.operations import Caller
from dnc_serve.handler.api.ordered_stream import FEW_UNANSWERED, OpenStreams, OrderedStream
from dnc_serve.handler.api.sequences import other_owner, session_id_of
from dnc_serve.handler.api.session_queue import PendingReply
from dnc_serve.handler.api.siblings import Siblings, as_called, refusal_of
from dnc_serve.handler.engine.session import Session
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.inference import inference_pb2 as pb

FINAL_ASKED, FINAL = "triton_enable_empty_final_response", "triton_final_response"


class InferenceStream(OrderedStream):
    """One stream of one caller. A refusal says what is wrong in its message, and nothing else is refused for it: who
    wants nothing to be skipped names positions."""

    refuses_behind = False

    def __init__(
        self,
        inference: InferenceModels,
        caller: Caller,
        context: "grpc.aio.ServicerContext[Any, Any]",
        streams: OpenStreams,
        siblings: Siblings | None = None,
    ) -> None:
        super().__init__(inference.models, caller, context, streams)
        self._siblings = siblings
        self._as_called = as_called(context)
        self._inference = inference
        self._why_leaving = ""

    def go_away(self, reason: str) -> None:
        """Reads no more and answers what was read; the protocol has no other farewell than the call's status."""
        self._why_leaving = reason
        self._stop_reading()

    async def serve(self) -> None:
        """Raises DRAINING if it was told to go away."""
        await super().serve()
        if self._why_leaving:
            raise ServeError("DRAINING", f"the server is leaving: {self._why_leaving}", retry_after_s=1.0)

    async def _read(self) -> None:
        while (message := await self._context.read()) is not grpc.aio.EOF:
            if self._leaving.done():
                return
            await self._take_request(message)

    async def _take_request(self, message: pb.ModelInferRequest | ServeError) -> None:
        if isinstance(message, ServeError):
            self._refuse(self._join("", "", 0), message)
            return
        session_id = ""
        try:
            session_id = session_id_of(message)
            sequences = self._inference.named(message.model_name, message.model_version)
        except ServeError as error:
            self._refuse(self._join(session_id, message.id, 0), error)
            return
        pending = self._join(session_id, message.id, message.ByteSize() + sequences.answer_bytes(message))

        owner = other_owner(message, self._siblings)

        async def submit() -> Session | None:
            if owner is not None:
                self._pass_on(owner, message, pending, done)
                return None
            more_to_come = self._unanswered > FEW_UNANSWERED
            of_session = await self._inference.of_request(message, self._caller)
            asked = of_session.read(message)
            session, pending.request = await of_session.submit(asked, self._caller, done, more_to_come=more_to_come)
            return session

        def done(answer: pb.ModelInferResponse | None, error: ServeError | None) -> None:
            if error is not None or answer is None:
                assert error is not None
                self._refuse(pending, error)
                return
            response = pb.ModelStreamInferResponse(infer_response=answer)  # a copy: the answer may be kept for others
            if FINAL_ASKED in message.parameters and message.parameters[FINAL_ASKED].bool_param:
                response.infer_response.parameters[FINAL].bool_param = True
            self._queues.reply(pending, response.SerializeToString())

        await self._take(pending, submit)

    def _pass_on(
        self,
        owner: int,
        message: pb.ModelInferRequest,
        pending: PendingReply,
        done: Callable[[pb.ModelInferResponse | None, ServeError | None], None],
    ) -> None:
        """Has another worker answer, once it has answered what came before for the sequence."""
        assert self._siblings is not None
        stub = self._siblings.inference(owner)

        async def ask() -> None:
            try:
                done(await stub.ModelInfer(message, **self._as_called), None)
            except grpc.aio.AioRpcError as error:
                done(None, refusal_of(error, owner))

        def start() -> None:
            task = asyncio.ensure_future(ask())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._queues.start_when_first(pending, start)

    def _refusal(self, pending: PendingReply, error: ServeError) -> bytes:
        refusal = pb.ModelStreamInferResponse(error_message=error.message)
        refusal.infer_response.id = str(pending.request_id)
        return refusal.SerializeToString()
