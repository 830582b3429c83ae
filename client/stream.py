"""One stream to one server, for one session or for many, and what each session has under way on it.

Everything on the fast path happens in plain calls: `push` sends what the window lets, `receive` settles what was
answered. Only trouble starts a task: see `recovery.py`.
"""

import asyncio
import copy
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from dnc_serve.client.calls import Calls, is_silence
from dnc_serve.client.errors import ClientClosed, DeadlineExceeded, DncError, Draining, Unavailable, from_status
from dnc_serve.client.ledger import Entry, Ledger
from dnc_serve.client.recovery import MakeAgain, Recovery
from dnc_serve.client.transport import Hosts, Route
from dnc_serve.client.workers import Metadata
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

# How long a stream that is closed may take to answer what it has read.
LAST_ANSWERS_S = 1.0
# A batch passes any server's message limit together with one more message.
BATCH_MESSAGES = 256
BATCH_BYTES = 1 << 20
# All that gRPC says where a stream ended while it was being written to: what the server said is lost then.
LOST_REFUSAL = "Internal error from Core"


class Stream:
    """Sends without waiting, since the sessions' windows bound what is under way, and hands out answers by session."""

    def __init__(self, hosts: Hosts, target: str, metadata: Metadata) -> None:
        self.target = target
        self.members: dict[str, Delivery] = {}  # by session: answers bear its id, and so reach one only
        self._hosts = hosts
        self._outbox: deque[pb.StreamRequest] = deque()
        self._something_to_send = asyncio.Event()
        self._finished = False
        self._go_away: Draining | None = None
        self._metadata = metadata
        self._call = hosts.stub(target).Stream(self._requests(), metadata=metadata)
        self._reader = asyncio.create_task(self._read())

    @property
    def is_open(self) -> bool:
        """Whether more may be sent."""
        return not self._finished and self._go_away is None

    def send(self, request: pb.StreamRequest) -> None:
        self._outbox.append(request)
        self._something_to_send.set()

    async def close(self) -> None:
        """Lets the server answer what it has read, for a moment, and ends."""
        self._finish()
        _, unfinished = await asyncio.wait([self._reader], timeout=LAST_ANSWERS_S)
        if unfinished:
            self.abandon()
            await asyncio.wait([self._reader])

    def close_soon(self) -> None:
        """The same, not waited for."""
        self._finish()
        asyncio.get_running_loop().call_later(LAST_ANSWERS_S, self.abandon)

    def abandon(self) -> None:
        """Ends at once."""
        self._finished = True
        self._call.cancel()

    def _finish(self) -> None:
        self._finished = True
        self._something_to_send.set()

    async def _requests(self) -> AsyncIterator[pb.StreamRequest]:
        while True:
            while self._outbox:
                yield self._next_message()
            if self._finished:
                return
            self._something_to_send.clear()
            await self._something_to_send.wait()

    def _next_message(self) -> pb.StreamRequest:
        """What waits, in one message if it is several: the server takes a turn of its loop for each message."""
        first = self._outbox.popleft()
        if not self._outbox:
            return first
        batch, size = [first], first.ByteSize()
        while self._outbox and len(batch) < BATCH_MESSAGES and size < BATCH_BYTES:
            batch.append(self._outbox.popleft())
            size += batch[-1].ByteSize()
        return pb.StreamRequest(batch=pb.RequestBatch(requests=batch))

    async def _read(self) -> None:
        error: DncError = Unavailable(f"{self.target} ended the stream")
        try:
            async with self._hosts.translated(self.target):
                async for response in self._call:
                    self._hand_out(response)
        except DncError as exc:
            error = await self._refusal() or exc if exc.message == LOST_REFUSAL else exc
        except asyncio.CancelledError:
            error = Unavailable("the stream was given up")
        finally:
            self._finish()
            for member in list(self.members.values()):
                member.lose(self, self._go_away or error)

    async def _refusal(self) -> DncError | None:
        """What the server says to one more stream that sends nothing; None if it doesn't refuse it."""
        call = self._hosts.stub(self.target).Stream(metadata=self._metadata, timeout=LAST_ANSWERS_S)
        try:
            async with self._hosts.translated(self.target):
                await call.read()
        except DeadlineExceeded:
            pass
        except DncError as refusal:
            return refusal
        finally:
            call.cancel()
        return None

    def _hand_out(self, response: pb.StreamResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "go_away":
            notice = response.go_away
            self._go_away = Draining(
                f"{self.target} is leaving: {notice.reason}", retry_after_s=notice.retry_after_seconds
            )
        elif kind == "batch":
            for one in response.batch.responses:
                self._hand_out(one)
        elif kind is not None:  # else a message of a later contract
            answer = getattr(response, kind)
            member = self.members.get(answer.session.session_id if kind == "reset" else answer.session_id)
            if member is not None:
                member.receive(kind, answer)


OpenStream = Callable[[Route, str], Stream]
"""A stream for a session: its own, or one that it shares with others."""


class Delivery(Recovery):
    """Gets the entries of one session's ledger answered, whatever happens to connections and servers.

    All methods are called on the client's event loop.
    """

    def __init__(
        self,
        session_id: str,
        incarnation: int,
        ledger: Ledger,
        route: Route,
        calls: Calls,
        open_stream: OpenStream,
        make_again: MakeAgain | None = None,
    ) -> None:
        super().__init__(session_id, incarnation, ledger, route, calls, make_again)
        self._open_stream = open_stream
        self._stream: Stream | None = None
        self._untold: DncError | None = None
        self._room = asyncio.Event()
        self._closed = False

    @property
    def failed(self) -> bool:
        """Whether something failed that nobody has been told of: what follows it must not be sent in its place."""
        return self._untold is not None

    def check(self) -> None:
        """Raises what failed, if nobody has been told."""
        if self._untold is not None:
            error, self._untold = self._untold, None
            raise error

    def push(self) -> None:
        """Sends what may be sent now. Raises ClientClosed."""
        if self._calls.hosts.unusable:
            raise ClientClosed(self._calls.hosts.unusable)
        if self._closed:
            raise ClientClosed(f"session {self._session_id!r} was closed")
        if self._resumption is not None or not self.ledger.unsettled:
            return
        if self._loss is not None:
            self._try_later(self._loss)
            return
        stream = self._stream
        if stream is not None and stream.target != self.route.target:  # the session's own worker was found
            if self.ledger.is_under_way:
                return
            self._move()
            stream = None
        if stream is None:
            try:
                stream = self._stream = self._open_stream(self.route, self._session_id)
            except DncError as error:  # there is no token to be had, for one
                self._give_up(error)
                return
            stream.members[self._session_id] = self
        if not stream.is_open:
            return  # it will tell when it has ended
        for entry in self.ledger.due():
            if entry.message.request_id:
                # An earlier sending may still wait in the stream, and must keep its id: its refusal is not this one's.
                entry.request = copy.copy(entry.request)
            message = entry.message
            message.request_id = entry.request_id
            message.pipelined = entry.pipelined
            stream.send(entry.request)

    async def settled(self, entry: Entry) -> None:
        """Returns when the entry has been answered; raises what it failed with.

        If nothing comes within the timeout, all that is unanswered fails.
        """
        if not entry.settled:
            waiter = asyncio.get_running_loop().create_future()
            entry.waiters.append(waiter)
            try:
                async with asyncio.timeout(self._calls.timeout_s):
                    await waiter
            except TimeoutError:
                trouble = self._backoff.last if self._backoff is not None else None
                self.route.go_on(away_from=self.route.target)
                self._drop_stream()
                self._give_up(trouble or DeadlineExceeded(f"no answer within {self._calls.timeout_s:g} s"))
        if entry.failure is not None:
            self._untold = None
            raise entry.failure

    async def room(self) -> None:
        """Returns when one more entry would be sent at once."""
        while not self.ledger.has_room:
            self._room.clear()
            await self._room.wait()

    def withdraw(self, entry: Entry, error: DncError) -> None:
        """Gives up an entry, and all after it."""
        self._wake(self.ledger.withdraw(entry, error))
        if not self.ledger.unsettled:
            self._stop()

    async def close(self) -> None:
        """Leaves the session as it is on the server."""
        stream = self._leave()
        if stream is not None:
            await stream.close()
        self._fail_rest()

    def drop(self) -> None:
        """The same, waiting for nothing."""
        stream = self._leave()
        if stream is not None:
            stream.close_soon()
        self._fail_rest()

    def _leave(self) -> Stream | None:
        """Leaves the stream for good; returns it if nobody uses it any more."""
        self._closed = True
        self._stop()
        return self._left()

    def _left(self) -> Stream | None:
        stream, self._stream = self._stream, None
        if stream is None:
            return None
        stream.members.pop(self._session_id, None)
        return None if stream.members else stream

    def _move(self) -> None:
        """Leaves the stream, on which nothing is under way."""
        stream = self._left()
        if stream is not None:
            stream.close_soon()

    def _drop_stream(self) -> None:
        """Leaves the stream for another one; if nobody else uses it, it ends."""
        stream = self._left()
        if stream is not None:
            stream.abandon()

    def _fail_rest(self) -> None:
        self._wake(self.ledger.withdraw_unsettled(ClientClosed(f"session {self._session_id!r} was closed")))

    # What a stream tells.

    def receive(self, kind: str, answer: Any) -> None:
        """An answer to something that this session sent."""
        ledger = self.ledger
        try:
            if kind == "error":
                ledger.refuse(answer.request_id, from_status(answer.status))
                entry = None
            else:
                stands = answer if kind == "chunk" else answer.session
                entry = ledger.answer(
                    answer.request_id,
                    position=stands.position,
                    durable_position=stands.durable_position,
                    experience=stands.experience,
                    outputs=answer.outputs.data if kind == "chunk" else b"",
                    result=answer,
                )
        except DncError as error:
            self._give_up(error)
            return
        if entry is not None:
            if self._backoff is not None:
                self._answered()
            self._wake([entry])
        trouble = ledger.trouble
        if trouble is not None:
            self._react(trouble)
        elif not self._closed:
            self.push()

    def lose(self, stream: Stream, error: DncError) -> None:
        """The stream carries nothing any more; what it had not answered is to be sent elsewhere."""
        if stream is not self._stream:
            return
        self._stream = None
        self.route.go_on(away_from=stream.target)
        if self.ledger.unsettled and is_silence(error):
            self._calls.missed(stream.target, error)
        self.ledger.resend()
        self._try_later(error)

    def _give_up(self, error: DncError) -> None:
        """All that is unanswered fails, with what is known of it."""
        position = self.ledger.settled_position
        applied = self.ledger.applied_position
        if applied is None:
            rest = "what was sent after it may or may not have been applied"
        elif applied > position:
            rest = f"the server has applied what was sent up to position {applied}"
        else:
            rest = "nothing that was sent after it was applied"
        noted = error.with_note(
            f"session {self._session_id!r} was answered up to position {position}; {rest}", position=position
        )
        failed = self.ledger.withdraw_unsettled(noted)
        self._untold = noted if failed else None
        self._wake(failed)
        self._stop()

    def _wake(self, entries: list[Entry]) -> None:
        for entry in entries:
            for waiter in entry.waiters:
                if not waiter.done():
                    waiter.set_result(None)
        if entries:
            self._room.set()
