"""TLS at the streaming endpoint and over HTTP; renewed certificates are taken up without a restart."""

import ssl
from contextlib import suppress
from pathlib import Path

import grpc

from dnc_serve.handler.config import ServeConfig


class Certificates:
    """Certificate, key and, for mutual TLS, the authority of clients, read from files again when they change. Each
    endpoint has its own of these."""

    def __init__(self, config: ServeConfig) -> None:
        self._certificate = Path(config.tls_certificate)
        self._key = Path(config.tls_key)
        self._client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
        self._stamps: tuple[int, ...] = ()

    def credentials(self) -> grpc.ServerCredentials:
        """Raises OSError if a file can't be read."""
        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            self._renewed,  # type: ignore[arg-type]  # the stubs do not know that None means unchanged
            require_client_authentication=self._client_ca is not None,
        )

    def context(self) -> ssl.SSLContext:
        """The same for an endpoint in Python. Raises OSError if a file can't be read, or holds no such thing."""
        present = first = self._loaded()

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
            nonlocal present
            with suppress(OSError):  # a renewal is half done
                if self._stamped() != self._stamps:
                    present = self._loaded()
            connection.context = present

        # OpenSSL calls it in each handshake, also of clients that name no server.
        first.sni_callback = choose
        return first

    def _loaded(self) -> ssl.SSLContext:
        stamps = self._stamped()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._client_ca)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self._certificate, self._key)
        self._stamps = stamps
        return context

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What a new connection is served with; None if nothing has changed, or a renewal is half done."""
        try:
            return None if self._stamped() == self._stamps else self._read()
        except OSError:
            return None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        stamps = self._stamped()
        configuration = grpc.ssl_server_certificate_configuration(
            [(self._key.read_bytes(), self._certificate.read_bytes())],
            root_certificates=self._client_ca.read_bytes() if self._client_ca else None,
        )
        self._stamps = stamps
        return configuration

    def _stamped(self) -> tuple[int, ...]:
        paths = [self._certificate, self._key, *([self._client_ca] if self._client_ca else [])]
        return tuple(path.stat().st_mtime_ns for path in paths)
