"""One bidirectional stream to one server, for one session or for many."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from dnc_serve.client.errors import DeadlineExceeded, DncError, Draining, Unavailable
from dnc_serve.client.hosts import Hosts, Metadata
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

# How long a stream that is closed may take to answer what it has read.
LAST_ANSWERS_S = 1.0
# A batch passes any server's message limit together with one more message.
BATCH_MESSAGES = 256
BATCH_BYTES = 1 << 20
# All that gRPC says where a stream ended while it was being written to: what the server said is lost then.
LOST_REFUSAL = "Internal error from Core"


class Member(Protocol):
    """A session's side of a pipe."""

    def receive(self, response: pb.StreamResponse, kind: str) -> None:
        """An answer to something that this session sent."""

    def lose(self, pipe: "Pipe", error: DncError) -> None:
        """The pipe carries nothing any more; what it had not answered is to be sent elsewhere."""


class Pipe:
    """Sends without waiting, since the sessions' windows bound what is under way, and hands out answers by session."""

    def __init__(self, hosts: Hosts, target: str, metadata: Metadata) -> None:
        self.target = target
        self._hosts = hosts
        self._members: dict[str, Member] = {}
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

    def join(self, session_id: str, member: Member) -> None:
        self._members[session_id] = member

    def leave(self, session_id: str) -> None:
        self._members.pop(session_id, None)

    @property
    def is_empty(self) -> bool:
        return not self._members

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

    def _finish(self) -> None:
        self._finished = True
        self._something_to_send.set()

    def abandon(self) -> None:
        """Ends at once."""
        self._finished = True
        self._call.cancel()

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
            self._finished = True
            self._something_to_send.set()
            for member in list(self._members.values()):
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
            return
        if kind is None:
            return  # a message of a later contract
        if kind == "batch":
            for one in response.batch.responses:
                self._hand_out(one)
            return
        answer = getattr(response, kind)
        member = self._members.get(answer.session.session_id if kind == "reset" else answer.session_id)
        if member is not None:
            member.receive(response, kind)
