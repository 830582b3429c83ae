"""A network between client and server that is slow, cuts connections anywhere, and says things twice.

It passes whole HTTP/2 frames on, so that it can repeat one that holds a whole gRPC message: the other side then gets
that message twice, as a client that sends again after a lost answer would have it.
"""

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator
from socket import SO_LINGER, SOL_SOCKET

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES = 9
DATA, END_STREAM = 0, 1
MESSAGE_PREFIX_BYTES = 5


class Trouble:
    """What may befall each frame on its way, as chances between 0 and 1."""

    def __init__(self, seed: int, *, delay: float = 0.0, cut: float = 0.0, repeat: float = 0.0) -> None:
        self._chance = random.Random(seed)
        self._delay, self._cut, self._repeat = delay, cut, repeat
        self.cuts = self.repeated = 0

    def end(self) -> None:
        """From now on all is well."""
        self._delay = self._cut = self._repeat = 0.0

    def delay_s(self) -> float:
        return self._chance.uniform(0.0, 0.05) if self._chance.random() < self._delay else 0.0

    def cut_after(self, nbytes: int) -> int | None:
        """After how many bytes of so many the connection is cut; None if it isn't."""
        if self._chance.random() >= self._cut:
            return None
        self.cuts += 1
        return self._chance.randint(0, nbytes)

    def repeats(self) -> bool:
        if self._chance.random() >= self._repeat:
            return False
        self.repeated += 1
        return True


class Relay:
    """Passes frames both ways."""

    def __init__(self, target: str, trouble: Trouble) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._trouble = trouble
        self._writers: set[asyncio.StreamWriter] = set()
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            pair = (writer, far_writer)
            self._writers.update(pair)
            try:
                await asyncio.gather(self._pass(reader, far_writer, pair), self._pass(far_reader, writer, pair))
            finally:
                self._cut(pair)
                self._writers.difference_update(pair)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        streaming: set[bytes] = set()  # a call of one message alone can't take a second one
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await self._frame(reader)
                await asyncio.sleep(self._trouble.delay_s())
                cut_after = self._trouble.cut_after(len(frame))
                if cut_after is not None:
                    writer.write(frame[:cut_after])
                    self._cut(pair)
                    return
                writer.write(frame)
                if _holds_a_message(frame):
                    stream = frame[5:9]
                    if stream in streaming and self._trouble.repeats():
                        writer.write(frame)
                    streaming.add(stream)
                await writer.drain()
        self._cut(pair)

    async def _frame(self, reader: asyncio.StreamReader) -> bytes:
        header = await reader.readexactly(FRAME_HEADER_BYTES)
        if PREFACE.startswith(header):
            return header + await reader.readexactly(len(PREFACE) - len(header))
        return header + await reader.readexactly(int.from_bytes(header[:3], "big"))

    def _cut(self, pair: tuple[asyncio.StreamWriter, ...]) -> None:
        """Resets both connections; what is on its way is gone."""
        for writer in pair:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def cut_all(self) -> None:
        self._cut(tuple(self._writers))


def _holds_a_message(frame: bytes) -> bool:
    """Whether it is a DATA frame with exactly one gRPC message, and doesn't end its stream."""
    if frame.startswith(b"PRI") or frame[3] != DATA or frame[4] & END_STREAM:
        return False
    payload = frame[FRAME_HEADER_BYTES:]
    return len(payload) > MESSAGE_PREFIX_BYTES and int.from_bytes(payload[1:5], "big") == len(payload) - 5


@contextlib.asynccontextmanager
async def relay_to(target: str, trouble: Trouble) -> AsyncIterator[Relay]:
    """A relay on a free port."""
    relay = Relay(target, trouble)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.address = "{}:{}".format(*server.sockets[0].getsockname()[:2])
    try:
        yield relay
    finally:
        server.close()
        relay.cut_all()
