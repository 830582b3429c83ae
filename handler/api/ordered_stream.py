"""What any bidirectional stream of chunks needs: answers in the order of each session, bounds on what is unanswered.

The reader stops reading while too much is unanswered, so that gRPC's flow control holds the sender back; replies wait
for a slow reader without holding up anybody else.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc

from dnc_serve.handler.api.models import Models
from dnc_serve.handler.api.operations import Caller
from dnc_serve.handler.api.refusals import note_message_refusal
from dnc_serve.handler.api.session_queue import Encoded, PendingReply, SessionQueues
from dnc_serve.handler.engine.session import Session
from dnc_serve.handler.errors import ServeError, internal_error

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


class Client(Protocol):
    """What is read and written: a gRPC context, or what stands in its place between workers."""

    async def read(self) -> Any:
        """A message, a refusal of one that could not be read, or EOF."""

    async def write(self, message: Any, /) -> None:
        """Takes an encoded answer."""


class OpenStreams:
    """The streams that are open, bounded in number."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._open: set[OrderedStream] = set()
        self._count = 0

    @contextmanager
    def open(self, bounded: bool = True) -> "Iterator[Callable[[OrderedStream], None]]":
        """A place for one more stream; raises QUEUE_FULL if there is none, unless it has one at another worker."""
        if bounded and self._count >= self._at_most:
            raise ServeError(
                "QUEUE_FULL",
                f"{self._count} streams are open, at most {self._at_most} may be: close sessions that nobody uses, let "
                "sessions share streams (`Client.multiplex`), or serve with a larger --max-streams",
                retry_after_s=1.0,
                limit=self._at_most,
            )
        self._count += bounded
        mine: list[OrderedStream] = []

        def register(stream: OrderedStream) -> None:
            mine.append(stream)
            self._open.add(stream)

        try:
            yield register
        finally:
            self._open.difference_update(mine)
            self._count -= bounded

    @property
    def share_bytes(self) -> int:
        """What may be unanswered on each stream, those that came in at another worker included."""
        return min(MAX_UNANSWERED_BYTES, UNANSWERED_BYTES // max(1, len(self._open)))

    def go_away(self, reason: str) -> None:
        """Tells every client to go on elsewhere, or later."""
        for stream in self._open:
            stream.go_away(reason)

    def __len__(self) -> int:
        return self._count


class OrderedStream(ABC):
    """One stream of one caller."""

    # Whether what follows a refusal might be applied in its stead, and so is refused: see `ErrorState`.
    refuses_behind = True
    # How a reply begins that may leave with others in one message. One that was encoded before there were batches may
    # still wait: joined with those, whose field excludes its own, it would be lost.
    batch_tag = b""

    def __init__(
        self,
        models: Models,
        caller: Caller,
        context: Client,
        streams: OpenStreams,
    ) -> None:
        self._streams = streams
        self._models = models
        self._engine = models.default.engine  # for its loop, and limits that all share
        self._caller = caller
        self._context = context
        self._outbox: deque[tuple[Encoded, int]] = deque()  # and the bytes that it answers for
        self._queues = SessionQueues(self._put, models.default)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = False
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._progress = asyncio.Event()  # something was written, or there is nobody any more to write to
        self._gone = False
        self._leaving: asyncio.Future[None] = self._engine.loop.create_future()
        self._batches = False  # whether replies that are ready together leave as one message

    @abstractmethod
    def go_away(self, reason: str) -> None:
        """Reads no more, answers what was read, and ends, telling the client why."""

    @abstractmethod
    async def _read(self) -> None:
        """Takes messages, until the client is done or the stream is leaving."""

    @abstractmethod
    def _refusal(self, pending: PendingReply, error: ServeError) -> bytes:
        """One message's error, encoded."""

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

    def _stop_reading(self) -> None:
        if not self._leaving.done():
            self._leaving.set_result(None)

    # Messages come in.

    async def _take(self, pending: PendingReply, submit: Callable[[], Awaitable[Session | None]]) -> None:
        """Submits one message; whatever is wrong with it is answered in-band. Returns when more may be read."""
        try:
            session = await submit()
        except ServeError as error:
            self._refuse(pending, error)
            return
        except Exception:  # unanswered, it would keep the stream from its end
            logger.exception("a message on a stream could not be taken")
            self._refuse(pending, internal_error())
            return
        if self._unanswered > 1 and self._is_crowded():
            await self._until(lambda: not self._is_crowded())
        if session is None:
            return
        while len(session.queue) >= self._engine.config.max_queued_chunks and not self._leaving.done():
            # Whoever else fills the session's queue doesn't tell us when there is room again.
            await asyncio.sleep(LOOK_AGAIN_S)

    def _is_crowded(self) -> bool:
        """Whether more is unanswered than may be: until then, gRPC's flow control holds the sender back."""
        return self._unanswered >= MAX_UNANSWERED or self._unanswered_bytes >= self._streams.share_bytes

    def _join(self, session_id: str, request_id: int | str, nbytes: int) -> PendingReply:
        """The last place in the session's queue, for a message that came."""
        self._unanswered += 1
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

    def _refuse(self, pending: PendingReply, error: ServeError, *, fails: bool = True) -> None:
        """Answers one message with an error; the stream goes on."""
        session_id, request_id = pending.queue.session_id, pending.request_id
        note_message_refusal(session_id, request_id, error, self._models.metrics)
        # Nothing can ever follow for an id that is none.
        fails = fails and self.refuses_behind and bool(session_id) and error.reason != "BAD_ID"
        self._queues.reply(pending, self._refusal(pending, error), failed=fails)

    # Replies go out.

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
                elif self._batches and reply[:1] == self.batch_tag:
                    batch, size = [reply], len(reply)
                    while self._outbox and len(batch) < BATCH_MESSAGES and size < BATCH_BYTES:
                        another, its_bytes = self._outbox[0]
                        if not isinstance(another, bytes) or another[:1] != self.batch_tag:
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
