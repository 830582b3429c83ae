"""A bidirectional stream: chunks, resets and dumps for one or many sessions, answered in order for each session.

The reader stops reading while too much is unanswered, so that gRPC's flow control holds the sender back; replies wait
for a slow reader without holding up anybody else.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from dnc_serve.handler.api.descriptions import chunk_result
from dnc_serve.handler.api.dumps import dump_parts
from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.api.session_queue import Encoded, PendingReply, SessionQueue, SessionQueues
from dnc_serve.handler.api.status import status_of
from dnc_serve.handler.api.views import Shown
from dnc_serve.handler.engine.requests import Inspect, StateView
from dnc_serve.handler.engine.session import GONE, Session, check_id
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

logger = logging.getLogger(__name__)

# Messages of one stream that may be unanswered, over all its sessions.
MAX_UNANSWERED = 1024
# Bytes of such messages and of their answers, over all streams, which share them, and of one.
UNANSWERED_BYTES = 256 << 20
MAX_UNANSWERED_BYTES = 16 << 20
# A sender with more than so many unanswered doesn't wait for each: what comes next is stepped with what came.
FEW_UNANSWERED = 8
# What one message carries at most to a client that takes several replies in one.
BATCH_MESSAGES = 256
BATCH_BYTES = 1 << 20
# Sessions of one stream that are kept in mind; forgetting one of which something failed might skip what failed, so the
# stream ends instead.
MAX_SESSIONS = 16_384
# How soon a reader that waits for room in a session's queue looks again, if others keep it full.
LOOK_AGAIN_S = 0.02
GO_AWAY_RETRY_S = 0.5

Dumped = tuple[StateView, dict[str, Shown]]
Message = pb.StreamRequest | ServeError


class OpenStreams:
    """The streams that are open, bounded in number."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._open: set[SessionStream] = set()
        self._count = 0

    @contextmanager
    def open(self) -> "Iterator[Callable[[SessionStream], None]]":
        """A place for one more stream; raises QUEUE_FULL if there is none."""
        if self._count >= self._at_most:
            raise ServeError(
                "QUEUE_FULL",
                f"{self._count} streams are open, at most {self._at_most} may be: close sessions that nobody uses, let "
                "sessions share streams (`Client.multiplex`), or serve with a larger --max-streams",
                retry_after_s=1.0,
                limit=self._at_most,
            )
        self._count += 1
        mine: list[SessionStream] = []

        def register(stream: SessionStream) -> None:
            mine.append(stream)
            self._open.add(stream)

        try:
            yield register
        finally:
            self._open.difference_update(mine)
            self._count -= 1

    @property
    def share_bytes(self) -> int:
        """What may be unanswered on each stream."""
        return min(MAX_UNANSWERED_BYTES, UNANSWERED_BYTES // max(1, self._count))

    def go_away(self, reason: str) -> None:
        """Tells every client to go on elsewhere, or later."""
        for stream in self._open:
            stream.go_away(reason)

    def __len__(self) -> int:
        return self._count


class SessionStream:
    """One stream of one caller."""

    def __init__(
        self,
        operations: Operations,
        caller: Caller,
        context: "grpc.aio.ServicerContext[Any, Any]",
        streams: OpenStreams,
    ) -> None:
        self._streams = streams
        self._operations = operations
        self._engine = operations.engine
        self._caller = caller
        self._context = context
        self._outbox: deque[tuple[Encoded, int]] = deque()  # and the bytes that it answers for
        self._queues = SessionQueues(self._put)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = False
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._progress = asyncio.Event()  # something was written, or there is nobody any more to write to
        self._gone = False
        self._leaving: asyncio.Future[None] = self._engine.loop.create_future()
        self._batches = False  # whether the client sends several messages in one, and so is answered

    async def serve(self) -> None:
        """Runs until the client is done and everything is answered, or the client is gone."""
        reading = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait((reading, self._leaving), return_when=asyncio.FIRST_COMPLETED)
            await self._until(lambda: not self._unanswered)
        finally:
            reading.cancel()
            for task in self._tasks:
                task.cancel()
            self._queues.abandon()
        if reading.done() and not reading.cancelled():
            reading.result()

    def go_away(self, reason: str) -> None:
        """Reads no more, answers what was read, and ends, telling the client why."""
        message = pb.StreamResponse(go_away=pb.GoAway(reason=reason, retry_after_seconds=GO_AWAY_RETRY_S))
        self._unanswered += 1
        self._put(self._encode(message), 0)
        self._stop_reading()

    def _stop_reading(self) -> None:
        if not self._leaving.done():
            self._leaving.set_result(None)

    # Messages come in.

    async def _read(self) -> None:
        while (message := await self._context.read()) is not grpc.aio.EOF:
            if not isinstance(message, ServeError) and message.HasField("batch"):
                if not self._batches:
                    self._batches = True
                    self._queues.forget_templates()
                for one in message.batch.requests:
                    await self._take(one)
            else:
                await self._take(message)
            if self._leaving.done():
                return

    async def _take(self, message: Message) -> None:
        """Submits one message; whatever is wrong with it is answered in-band. Returns when more may be read."""
        if self._leaving.done():
            return
        self._unanswered += 1
        kind = None if isinstance(message, ServeError) else message.WhichOneof("message")
        if kind is None or kind == "batch":
            got = "none" if kind is None else "a batch within a batch"
            error = ServeError("BAD_REQUEST", f"a stream message holds a chunk, a reset or a dump; got {got}")
            self._refuse(self._join("", 0, 0), message if isinstance(message, ServeError) else error)
            return
        asked = getattr(message, kind)
        nbytes = asked.ByteSize() + self._operations.answer_bytes(asked)
        pending = self._join(asked.session_id, asked.request_id, nbytes)
        session = pending.queue.session
        try:
            if session is None or session.status in GONE:
                session = await self._find_session(pending.queue)
            if kind == "chunk":
                self._submit_chunk(session, asked, pending)
            elif kind == "reset":
                self._submit_reset(session, asked, pending)
            else:
                self._submit_dump(session, asked, pending)
        except ServeError as error:
            self._refuse(pending, error)
            return
        except Exception:  # unanswered, it would keep the stream from its end
            logger.exception("a message on a stream could not be taken")
            self._refuse(pending, ServeError("INTERNAL", "the server made a mistake; its log says which"))
            return
        if self._unanswered > 1 and self._is_crowded():
            await self._until(lambda: not self._is_crowded())
        while len(session.queue) >= self._engine.config.max_queued_chunks and not self._leaving.done():
            # Whoever else fills the session's queue doesn't tell us when there is room again.
            await asyncio.sleep(LOOK_AGAIN_S)

    def _is_crowded(self) -> bool:
        """Whether more is unanswered than may be: until then, gRPC's flow control holds the sender back."""
        return self._unanswered >= MAX_UNANSWERED or self._unanswered_bytes >= self._streams.share_bytes

    def _join(self, session_id: str, request_id: int, nbytes: int) -> PendingReply:
        """The last place in the session's queue."""
        queue = self._queues.by_id.get(session_id)
        if queue is None:
            queue = self._queues.add(session_id)
            if len(self._queues.by_id) > MAX_SESSIONS:
                self._queues.forget_idle()
            if len(self._queues.by_id) > MAX_SESSIONS:
                self.go_away("too many sessions failed on this stream")
        self._unanswered_bytes += nbytes
        pending = PendingReply(queue, request_id, nbytes)
        queue.pending.append(pending)
        return pending

    async def _find_session(self, queue: SessionQueue) -> Session:
        if self._engine.table.find(queue.session_id) is None:
            await self._engine.ownership.adopt(check_id(queue.session_id), self._caller.owner)
        queue.session = self._operations.session(queue.session_id, self._caller)
        return queue.session

    def _submit_chunk(self, session: Session, message: pb.Chunk, pending: PendingReply) -> None:
        def done(applied: Any, error: ServeError | None) -> None:
            if error is not None:
                self._refuse(pending, error)
            elif applied.debug is not None:
                response = pb.StreamResponse(chunk=chunk_result(message.session_id, message.request_id, applied))
                self._queues.reply(pending, self._encode(response))
            else:
                encoded = pending.queue.encode_chunk(applied, pending.request_id, in_batch=self._batches)
                self._queues.reply(pending, encoded)

        chunk = self._operations.chunk(message, self._caller, done)
        chunk.error_state = pending.queue
        self._engine.submit(session, chunk, more_to_come=self._unanswered > FEW_UNANSWERED)
        pending.request = chunk

    def _submit_reset(self, session: Session, message: pb.Reset, pending: PendingReply) -> None:
        def done(changed: Any, error: ServeError | None) -> None:
            if error is not None:
                self._refuse(pending, error)
            else:
                result = self._operations.reset_result(message, session, changed)
                self._queues.reply(pending, self._encode(pb.StreamResponse(reset=result)))

        reset = self._operations.reset(message, self._caller, done)
        reset.error_state = pending.queue
        self._engine.submit(session, reset)
        pending.request = reset

    def _submit_dump(self, session: Session, message: pb.Dump, pending: PendingReply) -> None:
        if message.HasField("position"):
            # An earlier position may be that of the chunk right before it. What follows need not wait for the dump,
            # only for its reply, and skips nothing if it fails.
            def dump_past() -> Awaitable[Dumped]:
                return self._operations.dump(message, self._caller)

            self._queues.start_when_first(pending, lambda: self._show(message, pending, dump_past, fails=False))
            return

        async def dump(view: StateView) -> Dumped:
            return view, await self._operations.shown(message, view)

        def done(view: Any, error: ServeError | None) -> None:
            if error is not None:
                self._refuse(pending, error)
            else:
                self._show(message, pending, lambda: dump(view))

        inspect = Inspect(done, endpoint=self._caller.endpoint)
        inspect.error_state = pending.queue
        self._engine.submit(session, inspect)
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
                mistake = ServeError("INTERNAL", "the server made a mistake; its log says which")
                self._refuse(pending, mistake, fails=fails)
                return
            parts = dump_parts(message, view, arrays)
            self._queues.reply(pending, (self._encode(pb.StreamResponse(dump=part)) for part in parts))

        task = asyncio.create_task(show())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refuse(self, pending: PendingReply, error: ServeError, *, fails: bool = True) -> None:
        """Answers one message with an error; the stream goes on."""
        session_id, request_id = pending.queue.session_id, pending.request_id
        self._operations.metrics.errors.labels(error.reason).inc()
        logger.debug(
            "a message on a stream was refused: %s",
            error.message,
            extra={"reason": error.reason, "session": session_id, "request_id": request_id},
        )
        refusal = pb.StreamError(session_id=session_id, request_id=request_id, status=status_of(error))
        # Nothing can ever follow for an id that is none.
        fails = fails and bool(session_id) and error.reason != "BAD_ID"
        self._queues.reply(pending, self._encode(pb.StreamResponse(error=refusal)), failed=fails)

    # Replies go out.

    def _encode(self, response: pb.StreamResponse) -> bytes:
        if self._batches:
            response = pb.StreamResponse(batch=pb.ResponseBatch(responses=[response]))
        return response.SerializeToString()

    def _put(self, reply: Encoded, nbytes: int) -> None:
        self._outbox.append((reply, nbytes))
        if not self._writing:
            self._writing = True
            task = self._engine.loop.create_task(self._write())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write(self) -> None:
        """Writes what is in the outbox, until nothing is."""
        try:
            while self._outbox:
                reply, nbytes = self._outbox.popleft()
                answered = 1
                if not isinstance(reply, bytes):
                    for part in reply:
                        await self._context.write(part)
                elif self._batches:
                    batch, size = [reply], len(reply)
                    while self._outbox and len(batch) < BATCH_MESSAGES and size < BATCH_BYTES:
                        another, its_bytes = self._outbox[0]
                        if not isinstance(another, bytes):
                            break
                        self._outbox.popleft()
                        batch.append(another)
                        size += len(another)
                        nbytes += its_bytes
                    answered = len(batch)
                    await self._context.write(b"".join(batch))  # encoded messages that follow each other are one
                else:
                    await self._context.write(reply)
                self._unanswered -= answered
                self._unanswered_bytes -= nbytes
                self._progress.set()
        except (grpc.aio.InternalError, grpc.aio.UsageError):
            self._gone = True
            self._progress.set()
            self._stop_reading()
        finally:
            self._writing = False

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not (reached() or self._gone):
            self._progress.clear()
            await self._progress.wait()
