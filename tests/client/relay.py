"""A TCP relay between client and server that can cut what passes through it."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from socket import SO_LINGER, SOL_SOCKET


class Relay:
    """Passes bytes both ways until told otherwise."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut_after: int | None = None
        self.address = ""
        self.cuts = 0

    def cut(self) -> None:
        """Resets all connections, in both directions and at once."""
        for writer in self._writers:
            writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()

    def cut_after(self, nbytes: int) -> None:
        """Cuts in the midst of an answer, when so many more bytes have come from the server."""
        self._cut_after = nbytes

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            self._writers |= {writer, far_writer}
            await asyncio.gather(self._pass(reader, far_writer, False), self._pass(far_reader, writer, True))
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if is_answer and self._cut_after is not None:
                    self._cut_after -= len(data)
                    if self._cut_after < 0:
                        writer.write(data[: self._cut_after])
                        self._cut_after = None
                        self.cuts += 1
                        self.cut()
                        return
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def relay_to(target: str, port: int = 0) -> AsyncIterator[Relay]:
    """A relay, on a free port if none is given."""
    relay = Relay(target)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", port)
    relay.address = "{}:{}".format(*server.sockets[0].getsockname()[:2])
    try:
        yield relay
    finally:
        server.close()
        relay.cut()
