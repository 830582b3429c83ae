"""The contract's bidirectional stream: chunks, resets and dumps for one or many sessions."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from dnc_serve.handler.api.descriptions import chunk_result
from dnc_serve.handler.api.dumps import dump_parts
from dnc_serve.handler.api.ordered_stream import FEW_UNANSWERED, OrderedStream
from dnc_serve.handler.api.session_queue import PendingReply, SessionQueue
from dnc_serve.handler.api.status import status_of
from dnc_serve.handler.api.views import Shown
from dnc_serve.handler.engine.requests import Inspect, StateView
from dnc_serve.handler.engine.session import GONE, Session, check_id
from dnc_serve.handler.errors import ServeError, internal_error
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

logger = logging.getLogger(__name__)

GO_AWAY_RETRY_S = 0.5

Dumped = tuple[StateView, dict[str, Shown]]
Message = pb.StreamRequest | ServeError


class SessionStream(OrderedStream):
    """One stream of one caller; it answers in batches once it was sent one."""

    batch_tag = pb.StreamResponse(batch=pb.ResponseBatch()).SerializeToString()[:1]

    def go_away(self, reason: str) -> None:
        """Reads no more, answers what was read, and ends, telling the client why."""
        message = pb.StreamResponse(go_away=pb.GoAway(reason=reason, retry_after_seconds=GO_AWAY_RETRY_S))
        self._unanswered += 1
        self._put(self._encode(message), 0)
        self._stop_reading()

    async def _read(self) -> None:
        while (message := await self._context.read()) is not grpc.aio.EOF:
            if not isinstance(message, ServeError) and message.HasField("batch"):
                if not self._batches:
                    self._batches = True
                    self._queues.forget_templates()
                for one in message.batch.requests:
                    await self._take_message(one)
            else:
                await self._take_message(message)
            if self._leaving.done():
                return

    async def _take_message(self, message: Message) -> None:
        if self._leaving.done():
            return
        kind = None if isinstance(message, ServeError) else message.WhichOneof("message")
        if kind is None or kind == "batch":
            got = "none" if kind is None else "a batch within a batch"
            error = ServeError("BAD_REQUEST", f"a stream message holds a chunk, a reset or a dump; got {got}")
            self._refuse(self._join("", 0, 0), message if isinstance(message, ServeError) else error)
            return
        asked = getattr(message, kind)
        known = self._queues.by_id.get(asked.session_id)
        operations = self._models.default if known is None else known.operations
        nbytes = asked.ByteSize() + operations.answer_bytes(asked)
        pending = self._join(asked.session_id, asked.request_id, nbytes)

        async def submit() -> Session:
            session = pending.queue.session
            if session is None or session.status in GONE:
                session = await self._find_session(pending.queue)
            if kind == "chunk":
                self._submit_chunk(session, asked, pending)
            elif kind == "reset":
                self._submit_reset(session, asked, pending)
            else:
                self._submit_dump(session, asked, pending)
            return session

        await self._take(pending, submit)

    async def _find_session(self, queue: SessionQueue) -> Session:
        operations = await self._models.of(queue.session_id)
        if operations is not queue.operations:
            queue.operations = operations
            queue.forget_template()  # another model's outputs look different
        if operations.engine.table.find(queue.session_id) is None:
            await operations.engine.ownership.adopt(check_id(queue.session_id), self._caller.owner)
        queue.session = operations.session(queue.session_id, self._caller)
        return queue.session

    def _submit_chunk(self, session: Session, message: pb.Chunk, pending: PendingReply) -> None:
        def done(applied: Any, error: ServeError | None) -> None:
            if error is not None:
                self._refuse(pending, error)
            elif applied.debug is not None:
                response = pb.StreamResponse(chunk=chunk_result(message.session_id, message.request_id, applied))
                self._queues.reply(pending, self._encode(response))
            else:
                encoded = pending.queue.encode_chunk(applied, message.request_id, in_batch=self._batches)
                self._queues.reply(pending, encoded)

        operations = pending.queue.operations
        chunk = operations.chunk(message, self._caller, done)
        chunk.error_state = pending.queue
        operations.engine.submit(session, chunk, more_to_come=self._unanswered > FEW_UNANSWERED)
        pending.request = chunk

    def _submit_reset(self, session: Session, message: pb.Reset, pending: PendingReply) -> None:
        operations = pending.queue.operations

        def done(changed: Any, error: ServeError | None) -> None:
            if error is not None:
                self._refuse(pending, error)
            else:
                result = operations.reset_result(message, session, changed)
                self._queues.reply(pending, self._encode(pb.StreamResponse(reset=result)))

        reset = operations.reset(message, self._caller, done)
        reset.error_state = pending.queue
        operations.engine.submit(session, reset)
        pending.request = reset

    def _submit_dump(self, session: Session, message: pb.Dump, pending: PendingReply) -> None:
        operations = pending.queue.operations
        if message.HasField("position"):
            # An earlier position may be that of the chunk right before it. What follows need not wait for the dump,
            # only for its reply, and skips nothing if it fails.
            def dump_past() -> Awaitable[Dumped]:
                return operations.dump(message, self._caller)

            self._queues.start_when_first(pending, lambda: self._show(message, pending, dump_past, fails=False))
            return

        async def dump(view: StateView) -> Dumped:
            return view, await operations.shown(message, view)

        def done(view: Any, error: ServeError | None) -> None:
            if error is not None:
                self._refuse(pending, error)
            else:
                self._show(message, pending, lambda: dump(view))

        inspect = Inspect(done, endpoint=self._caller.endpoint)
        inspect.error_state = pending.queue
        operations.engine.submit(session, inspect)
        pending.request = inspect

    def _show(
        self, message: pb.Dump, pending: PendingReply, dump: Callable[[], Awaitable[Dumped]], *, fails: bool = True
    ) -> None:
        """Replies with a dump when it is there."""

        async def show() -> None:
            try:
                view, arrays = await dump()
            except ServeError as error:
                self._refuse(pending, error, fails=fails)
                return
            except Exception:
                logger.exception("a dump failed")
                self._refuse(pending, internal_error(), fails=fails)
                return
            parts = dump_parts(message, view, arrays)
            self._queues.reply(pending, (self._encode(pb.StreamResponse(dump=part)) for part in parts))

        task = asyncio.create_task(show())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refusal(self, pending: PendingReply, error: ServeError) -> bytes:
        refusal = pb.StreamError(
            session_id=pending.queue.session_id, request_id=int(pending.request_id), status=status_of(error)
        )
        return self._encode(pb.StreamResponse(error=refusal))

    def _encode(self, response: pb.StreamResponse) -> bytes:
        if self._batches:
            response = pb.StreamResponse(batch=pb.ResponseBatch(responses=[response]))
        return response.SerializeToString()
