"""The port of the HTTP endpoint: uvicorn in the server's own loop."""

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette

from dnc_serve.handler.addresses import bound, host_port, socket_addresses
from dnc_serve.handler.api.transport import Certificates
from dnc_serve.handler.config import ServeConfig

GRACE_S = 1


class HttpServer:
    """Serves an application. Raises OSError where it can't listen."""

    def __init__(self, config: ServeConfig, application: Starlette) -> None:
        port = config.http_port
        assert port is not None
        try:
            self._socket = bound(socket_addresses(config.host, port)[0], socket.SO_REUSEADDR)
        except OSError as exc:
            place = host_port(config.host, port)
            raise OSError(f"the HTTP endpoint can't listen at {place} (host, http_port): {exc.strerror}") from exc
        self.address = host_port(config.host, self._socket.getsockname()[1])
        settings = uvicorn.Config(
            application, lifespan="off", log_config=None, access_log=False, server_header=False, ws="none",
            timeout_graceful_shutdown=GRACE_S,
        )  # fmt: skip
        settings.load()
        if config.tls_certificate:
            settings.ssl = Certificates(config).context()
        self._server = uvicorn.Server(settings)
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Returns when it answers."""
        self._serving = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise OSError(f"the HTTP endpoint at {self.address} has ended")
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Calls under way may end within a second."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        self._socket.close()
