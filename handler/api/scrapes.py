"""The port that Prometheus scrapes."""

import contextlib
import socket
import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from dnc_serve.handler.addresses import host_port, socket_addresses


class Scrapes:
    """Answers Prometheus, each scrape in a thread. Raises OSError where it can't listen."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        class Server(ThreadingMixIn, WSGIServer):
            daemon_threads = True

        try:
            # prometheus_client's own server would drop the interface of a link-local address.
            Server.address_family, _, _, _, address = socket_addresses(host, port)[0]
            self._server = Server(address, _Quiet)
        except OSError as exc:
            place = host_port(host, port)
            raise OSError(f"the metrics can't be served at {place} (host, metrics_port): {exc.strerror}") from exc
        self._server.set_app(make_wsgi_app(registry))
        self.address = host_port(host, self._server.server_port)
        threading.Thread(target=self._server.serve_forever, name="dnc-metrics", daemon=True).start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)  # else the server would look for its end twice a second
        self._server.shutdown()
        self._server.server_close()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""
