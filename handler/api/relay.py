"""Clients' streams between two workers of a machine: all of them on one connection, a Unix socket.

    client's stream ─▶ Switch ─▶ Pipe ═╗ Line ═════ frames ═════ Line ╔═ Pipe ─▶ SessionStream
    another one     ─▶ Switch ─▶ Pipe ═╝                              ╚═ Pipe ─▶ SessionStream

What is put on a line in one turn of the loop leaves together, and is taken together at the other end: the more there
is, the less each costs. Messages pass as the bytes that they came as. On each pipe no more is under way, either way,
than its window, so that a slow client, or a slow session, holds up its own stream alone.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

# Of each pipe's messages, either way, that are not taken yet.
WINDOW_BYTES = 1 << 18
_HEAD = struct.Struct("<IBI")  # the pipe, the kind of the frame, and the bytes that follow

OPEN, DATA, TAKEN, DONE, FAILED, CANCEL = range(6)


class Broken(Exception):
    """The other worker is gone, or its end of the pipe."""


class Refused(Exception):
    """The other end has ended the pipe with a refusal."""

    def __init__(self, status: bytes) -> None:
        super().__init__("refused")
        self.status = status  # google.rpc.Status


class Line(asyncio.Protocol):
    """One end of the connection. `on_open(pipe, opening)` is called where the other end opens pipes."""

    def __init__(self, on_open: "Callable[[Pipe, bytes], None] | None" = None) -> None:
        self.broken = False
        self._on_open = on_open
        self._transport: asyncio.WriteTransport | None = None  # until it is connected
        self._loop = asyncio.get_running_loop()
        self._pipes: dict[int, Pipe] = {}
        self._last = 0
        self._outbox: list[bytes] = []
        self._leaving = False  # the outbox, at the end of this turn
        self._rest = b""  # of a frame that has not come as a whole

    def open(self, opening: bytes) -> "Pipe":
        """A new pipe."""
        self._last += 1
        pipe = self._pipes[self._last] = Pipe(self, self._last)
        self.put(self._last, OPEN, opening)
        return pipe

    def put(self, number: int, kind: int, payload: bytes = b"") -> None:
        """Has a frame leave with what else is put in this turn of the loop."""
        self._outbox.append(_HEAD.pack(number, kind, len(payload)))
        self._outbox.append(payload)
        if not self._leaving:
            self._leaving = True
            self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._leaving = False
        if self._transport is not None and self._outbox and not self.broken:
            self._transport.write(b"".join(self._outbox))
            self._outbox.clear()

    def forget(self, pipe: "Pipe") -> None:
        """The pipe is of no use any more."""
        self._pipes.pop(pipe.number, None)

    def close(self) -> None:
        """Ends the connection, and with it all pipes."""
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    # What the loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none by its class
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self.broken = True
        for pipe in list(self._pipes.values()):
            pipe.take(CANCEL, b"")

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at = 0
        while len(data) - at >= _HEAD.size:
            number, kind, size = _HEAD.unpack_from(data, at)
            ends = at + _HEAD.size + size
            if ends > len(data):
                break
            self._take(number, kind, bytes(data[at + _HEAD.size : ends]))
            at = ends
        self._rest = data[at:]

    def _take(self, number: int, kind: int, payload: bytes) -> None:
        if kind == OPEN and self._on_open is not None:
            pipe = self._pipes[number] = Pipe(self, number)
            self._on_open(pipe, payload)
        elif (known := self._pipes.get(number)) is not None:
            known.take(kind, payload)


class Pipe:
    """One client's stream on a line: messages of bytes in order, both ways."""

    def __init__(self, line: Line, number: int) -> None:
        self.number = number
        self.on_cancel: Callable[[], object] = lambda: None
        self._line = line
        self._inbox: deque[bytes] = deque()
        self._room = WINDOW_BYTES  # for what is sent
        self._taken = 0  # of what came, and the other end doesn't know yet
        self._end: Exception | None = None  # of what comes
        self._done = False
        self._moved: asyncio.Future[None] | None = None
        self._given_room: asyncio.Future[None] | None = None

    async def send(self, message: bytes) -> None:
        """Returns when there is room for the message, which is then on its way. Raises Broken."""
        while self._room <= 0 and self._end is None:
            self._given_room = asyncio.get_running_loop().create_future()
            await self._given_room
        if self._end is not None:
            raise self._end
        self._room -= len(message)
        self._line.put(self.number, DATA, message)

    async def receive(self) -> bytes | None:
        """The next message; None after the last. Raises Broken, or Refused."""
        while not self._inbox:
            if self._end is not None:
                raise self._end
            if self._done:
                return None
            self._moved = asyncio.get_running_loop().create_future()
            await self._moved
        message = self._inbox.popleft()
        self._taken += len(message)
        if self._taken >= WINDOW_BYTES // 2:
            self._line.put(self.number, TAKEN, self._taken.to_bytes(8, "little"))
            self._taken = 0
        return message

    def finish(self) -> None:
        """Nothing more is sent."""
        self._line.put(self.number, DONE)

    def refuse(self, status: bytes) -> None:
        """The same, with a refusal."""
        self._line.put(self.number, FAILED, status)

    def cancel(self) -> None:
        """Nobody is interested in what comes any more."""
        self._line.put(self.number, CANCEL)
        self.close()

    def close(self) -> None:
        """Both have said all that they had to say; who still waits to send is told."""
        self._line.forget(self)
        self._end = self._end or Broken()
        _wake(self._given_room)

    def take(self, kind: int, payload: bytes) -> None:
        """A frame from the other end."""
        if kind == DATA:
            self._inbox.append(payload)
        elif kind == TAKEN:
            self._room += int.from_bytes(payload, "little")
            _wake(self._given_room)
            return
        elif kind == DONE:
            self._done = True
        else:
            self._end = Refused(payload) if kind == FAILED else Broken()
            _wake(self._given_room)
            self.on_cancel()
        _wake(self._moved)


def _wake(waiting: "asyncio.Future[None] | None") -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
