"""A bidirectional stream: chunks, resets and dumps for one or many sessions, answered in order for each session.

The reader stops reading while too much is unanswered, so that gRPC's flow control holds the sender back; the writer
waits for a slow reader without holding up anybody else.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from dnc_serve.handler.doors.descriptions import chunk_result
from dnc_serve.handler.doors.dumps import dump_parts
from dnc_serve.handler.doors.lines import Encode, Lines, Place
from dnc_serve.handler.doors.looks import Shown
from dnc_serve.handler.doors.operations import Caller, Operations
from dnc_serve.handler.engine.sessions import Session, check_id
from dnc_serve.handler.engine.work import Peek, Seen, Work
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.metrics import Metrics
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

logger = logging.getLogger(__name__)

# Messages of one stream that may be unanswered, over all its sessions.
MAX_UNANSWERED = 1024
# Bytes of such messages and of their answers, over all streams, which share them, and of one.
UNANSWERED_BYTES = 256 << 20
MAX_UNANSWERED_BYTES = 16 << 20
# What one message carries at most to a client that takes several answers in one.
BATCH_MESSAGES = 256
BATCH_BYTES = 1 << 20
# Sessions of one stream of which something failed; forgetting one might skip what failed, so the stream ends instead.
MAX_BROKEN = 16_384
# How soon a reader that waits for room in a session's FIFO looks again, if others keep it full.
LOOK_AGAIN_SECONDS = 0.02
GO_AWAY_RETRY_SECONDS = 0.5

Asked = pb.Chunk | pb.Reset | pb.Dump
Dumped = tuple[Seen, dict[str, Shown]]


class OpenStreams:
    """The streams that are open, bounded in number."""

    def __init__(self, at_most: int, metrics: Metrics) -> None:
        self._at_most = at_most
        self._open: set[SessionStream] = set()
        self._count = 0
        self._metrics = metrics

    @contextmanager
    def open(self) -> "Iterator[Callable[[SessionStream], None]]":
        """A place for one more stream; raises QUEUE_FULL if there is none."""
        if self._count >= self._at_most:
            raise ServeError(
                "QUEUE_FULL", f"{self._count} streams are open, at most {self._at_most} may be", retry_after_s=1.0
            )
        self._count += 1
        self._metrics.streams.set(self._count)
        mine: list[SessionStream] = []

        def register(stream: SessionStream) -> None:
            mine.append(stream)
            self._open.add(stream)

        try:
            yield register
        finally:
            self._open.difference_update(mine)
            self._count -= 1
            self._metrics.streams.set(self._count)

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
        self._outbox: deque[tuple[Encode, int]] = deque()
        self._something_to_write = asyncio.Event()
        self._room = asyncio.Event()
        self._lines = Lines(self._put)
        self._tasks: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._reading = True
        self._batches = False  # whether the client sends several messages in one, and so is answered

    async def serve(self, messages: AsyncIterator[pb.StreamRequest]) -> None:
        """Runs until the client is done and everything is answered, or the client is gone."""
        reader = asyncio.create_task(self._read(messages))
        try:
            while True:
                while self._outbox:
                    await self._write_some()
                if not self._reading and (not self._unanswered or _has_failed(reader)):
                    break
                self._something_to_write.clear()
                await self._something_to_write.wait()
        finally:
            reader.cancel()
            for task in self._tasks:
                task.cancel()
            self._lines.abandon()
        if _has_failed(reader):
            reader.result()

    async def _write_some(self) -> None:
        """Writes the next answer, or as many as are ready to a client that sends several messages in one itself."""
        batch: list[pb.StreamResponse] = []
        size = answered = freed = 0
        while self._outbox and answered < BATCH_MESSAGES and size < BATCH_BYTES:
            encode, nbytes = self._outbox.popleft()
            freed += nbytes
            for response in encode():
                batch.append(response)
                size += response.ByteSize()
                if not self._batches or size >= BATCH_BYTES:
                    await self._write(batch)
                    batch = []
            answered += 1
            if not self._batches:
                break
        if batch:
            await self._write(batch)
        self._unanswered -= answered
        self._unanswered_bytes -= freed
        self._room.set()

    async def _write(self, responses: list[pb.StreamResponse]) -> None:
        if len(responses) == 1:
            await self._context.write(responses[0])
        else:
            await self._context.write(pb.StreamResponse(batch=pb.ResponseBatch(responses=responses)))

    def go_away(self, reason: str) -> None:
        """Reads no more, answers what was read, and ends, telling the client why."""
        message = pb.StreamResponse(go_away=pb.GoAway(reason=reason, retry_after_seconds=GO_AWAY_RETRY_SECONDS))
        self._unanswered += 1
        self._put(lambda: iter((message,)), 0)
        self._stop_reading()

    async def _read(self, messages: AsyncIterator[pb.StreamRequest]) -> None:
        try:
            async for message in messages:
                for one in self._unpacked(message):
                    if not self._reading:
                        return
                    self._unanswered += 1
                    await self._find_room(await self._take(one))
        finally:
            self._stop_reading()

    def _unpacked(self, message: pb.StreamRequest | ServeError) -> Sequence[pb.StreamRequest | ServeError]:
        if isinstance(message, ServeError) or message.WhichOneof("message") != "batch":
            return (message,)
        self._batches = True
        return message.batch.requests

    async def _find_room(self, session_id: str) -> None:
        """Returns when more may be read: until then, gRPC's flow control holds the sender back."""
        while self._unanswered >= MAX_UNANSWERED or self._unanswered_bytes >= self._streams.share_bytes:
            self._room.clear()
            await self._room.wait()
        while self._is_full(session_id):
            # Whoever else fills the session's queue doesn't tell us when there is room again.
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    def _stop_reading(self) -> None:
        self._reading = False
        self._something_to_write.set()

    def _is_full(self, session_id: str) -> bool:
        session = self._engine.registry.find(session_id)
        return session is not None and len(session.fifo) >= self._engine.config.max_queued_chunks

    async def _take(self, message: pb.StreamRequest | ServeError) -> str:
        """Submits one message and returns its session's id; whatever is wrong with it is answered in-band."""
        if isinstance(message, ServeError):  # it could not be read
            self._refuse(self._lines.join("", 0, 0), message)
            return ""
        kind = message.WhichOneof("message")
        if kind is None or kind == "batch":
            got = "none" if kind is None else "a batch within a batch"
            error = ServeError("BAD_REQUEST", f"a stream message holds a chunk, a reset or a dump; got {got}")
            self._refuse(self._lines.join("", 0, 0), error)
            return ""
        asked: Asked = getattr(message, kind)
        session_id = asked.session_id
        nbytes = asked.ByteSize() + self._operations.answer_bytes(asked)
        self._unanswered_bytes += nbytes
        place = self._lines.join(session_id, asked.request_id, nbytes)
        try:
            if self._engine.registry.find(session_id) is None:
                await self._engine.leases.adopt(check_id(session_id), self._caller.owner)
            if isinstance(asked, pb.Dump) and asked.HasField("position"):
                self._look_back(asked, place)
            else:
                self._submit(asked, place)
        except ServeError as error:
            self._refuse(place, error)
        except Exception:  # unanswered, it would keep the stream from its end
            logger.exception("a message on a stream could not be taken")
            self._refuse(place, ServeError("INTERNAL", "the server made a mistake; its log says which"))
        return session_id

    def _submit(self, asked: Asked, place: Place) -> None:
        if isinstance(asked, pb.Chunk):
            session, work = self._chunk(asked, place)
        elif isinstance(asked, pb.Reset):
            session, work = self._reset(asked, place)
        else:
            session, work = self._dump(asked, place)
        work.course = place.line
        self._engine.submit(session, work)
        place.work = work

    def _chunk(self, message: pb.Chunk, place: Place) -> tuple[Session, Work]:
        def done(applied: Any, error: ServeError | None) -> None:
            if error is not None:
                self._refuse(place, error)
            else:
                self._lines.answer(place, lambda: iter((pb.StreamResponse(chunk=chunk_result(message, applied)),)))

        return self._operations.chunk(message, self._caller, done)

    def _reset(self, message: pb.Reset, place: Place) -> tuple[Session, Work]:
        session = self._operations.session(message.session_id, self._caller)

        def done(changed: Any, error: ServeError | None) -> None:
            if error is not None:
                self._refuse(place, error)
            else:
                result = self._operations.reset_result(message, session, changed)
                self._lines.answer(place, lambda: iter((pb.StreamResponse(reset=result),)))

        return session, self._operations.reset(message, self._caller, done)

    def _dump(self, message: pb.Dump, place: Place) -> tuple[Session, Work]:
        session = self._operations.session(message.session_id, self._caller)

        async def dump(seen: Seen) -> Dumped:
            return seen, await self._operations.shown(message, seen)

        def done(seen: Any, error: ServeError | None) -> None:
            if error is not None:
                self._refuse(place, error)
            else:
                self._show(message, place, lambda: dump(seen))

        return session, Peek(done, door=self._caller.door)

    def _look_back(self, message: pb.Dump, place: Place) -> None:
        """A dump of an earlier position, which may be that of the chunk right before it; what follows need not wait
        for it, only for its answer, and skips nothing if it fails."""

        def dump() -> Awaitable[Dumped]:
            return self._operations.dump(message, self._caller)

        self._lines.start_when_first(place, lambda: self._show(message, place, dump, breaks=False))

    def _show(
        self, message: pb.Dump, place: Place, dump: Callable[[], Awaitable[Dumped]], *, breaks: bool = True
    ) -> None:
        """Answers with a dump when it is there."""

        async def show() -> None:
            try:
                seen, arrays = await dump()
            except ServeError as error:
                self._refuse(place, error, breaks=breaks)
                return
            except Exception:  # unanswered, it would keep the stream from its end
                logger.exception("a dump failed")
                mistake = ServeError("INTERNAL", "the server made a mistake; its log says which")
                self._refuse(place, mistake, breaks=breaks)
                return
            self._lines.answer(
                place, lambda: (pb.StreamResponse(dump=part) for part in dump_parts(message, seen, arrays))
            )

        task = asyncio.create_task(show())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refuse(self, place: Place, error: ServeError, *, breaks: bool = True) -> None:
        """Answers one message with an error; the stream goes on."""
        session_id, request_id = place.line.session_id, place.request_id
        self._engine.metrics.errors.labels(error.reason).inc()
        logger.debug(
            "a message on a stream was refused: %s",
            error.message,
            extra={"reason": error.reason, "session": session_id, "request_id": request_id},
        )
        response = pb.StreamResponse(
            error=pb.StreamError(session_id=session_id, request_id=request_id, status=error.to_status())
        )
        # Nothing can ever follow for an id that is none.
        breaks = breaks and bool(session_id) and error.reason != "BAD_ID"
        self._lines.answer(place, lambda: iter((response,)), failed=breaks)
        if len(self._lines) > MAX_BROKEN and self._reading:
            self.go_away("too many sessions failed on this stream")

    def _put(self, encode: Encode, nbytes: int) -> None:
        self._outbox.append((encode, nbytes))
        self._something_to_write.set()


def _has_failed(task: "asyncio.Task[None]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None
