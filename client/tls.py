"""TLS: what a client brings, and what it means when no connection comes of it."""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

# How long a server may take to say something to whoever looks closer.
LOOK_S = 2.0
# What gRPC says when a handshake failed, and what that means.
HANDSHAKE_FAULTS = {
    "WRONG_VERSION_NUMBER": "what listens there doesn't speak TLS: leave `tls` out (`--tls` and the like), or serve it "
    "with TLS",
    "CERTIFICATE_VERIFY_FAILED": "this client doesn't trust the server's certificate: name the file of its authority "
    "in TLS(ca=…) (`--tls-ca`)",
    "Hostname Verification Check failed": "the server's certificate is for another name: use that one as the target, "
    "or name it in TLS(server_name=…)",
}
# OpenSSL's codes for a certificate of another name, and of another address.
HOSTNAME_MISMATCHES = (62, 64)


@dataclass(frozen=True, slots=True)
class TLS:
    """PEM files; `ca` if the system's authorities don't know the server, a pair for mutual TLS."""

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None  # if it isn't the target's

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError for a file that can't be read, ValueError for one that isn't what it should be."""
        self.context()
        ca, key, certificate = (
            Path(file).read_bytes() if file is not None else None for file in (self.ca, self.key, self.certificate)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def context(self) -> ssl.SSLContext:
        """The same for Python's TLS, which says what is wrong with a file. Raises as `credentials` does."""
        for name in ("ca", "certificate", "key", "server_name"):
            value = getattr(self, name)
            if not (value is None or (isinstance(value, str | Path) and str(value))):
                raise ValueError(f"{name} of the TLS is {value!r}; expected a name or a path")
        if (self.certificate is None) != (self.key is None):
            raise ValueError(f"certificate is {self.certificate} and key {self.key}; expected both or neither")
        context = ssl.create_default_context()
        if self.ca is not None:
            with _expecting(f"ca is {str(self.ca)!r}; expected a PEM file with certificates"):
                context.load_verify_locations(self.ca)
        if self.certificate is not None:
            with _expecting(
                f"certificate is {str(self.certificate)!r} and key {str(self.key)!r}; expected PEM files of a "
                "certificate and of its key, unencrypted"
            ):
                context.load_cert_chain(self.certificate, self.key, password="")  # or it would ask at the terminal
        return context


@contextmanager
def _expecting(fault: str) -> Iterator[None]:
    """Raises what is said of a file with the fault: OSError if it can't be read, ValueError for what is in it."""
    try:
        yield
    except ssl.SSLError as exc:
        raise ValueError(f"{fault} ({exc})") from None
    except OSError as exc:
        raise type(exc)(f"{fault} ({exc.strerror})") from None


async def handshake_fault(host: str, port: int, tls: TLS) -> str:
    """Why no handshake with a server succeeds, where one of its addresses takes connections; else nothing.

    gRPC tells of the last address only, and of a server on 127.0.0.1 that is called localhost, ::1 refuses.
    """
    try:
        async with asyncio.timeout(LOOK_S):
            _, writer = await asyncio.open_connection(
                host, port, ssl=tls.context(), server_hostname=tls.server_name or host
            )
    except ssl.SSLCertVerificationError as error:
        is_name = error.verify_code in HOSTNAME_MISMATCHES
        return HANDSHAKE_FAULTS["Hostname Verification Check failed" if is_name else "CERTIFICATE_VERIFY_FAILED"]
    except ssl.SSLError as error:
        return HANDSHAKE_FAULTS.get(error.reason or "", "")
    except (TimeoutError, OSError):
        return ""
    writer.transport.abort()
    return ""


async def closed_by(host: str, port: int, tls: TLS | None) -> str:
    """Why a server takes connections and closes them, as far as a handshake with it tells; else nothing.

    gRPC only says that the socket was closed, for a server that speaks TLS as for one that asks for a certificate.
    """
    context = ssl.create_default_context() if tls is None else tls.context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    opened = False
    try:
        async with asyncio.timeout(LOOK_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            opened = True
            try:
                if tls is not None and await reader.read(1):
                    return ""  # it begins to talk: there is nothing wrong with it
            finally:
                writer.transport.abort()
    except TimeoutError:
        return ""
    except OSError as error:  # those of TLS are some of them
        if not opened and "ALERT" not in (getattr(error, "reason", None) or ""):
            return ""  # it isn't there, or doesn't speak TLS
    if tls is None:
        return "the server speaks TLS: use tls=True, or TLS(ca=…) (`--tls`, `--tls-ca`)"
    if tls.certificate is None:
        return (
            "the server ends the handshake as one does that asks for a certificate of the client: "
            "name one in TLS(certificate=…, key=…) (`--tls-certificate`, `--tls-key`)"
        )
    return "the server ends the handshake as one does that doesn't trust this client's certificate"
