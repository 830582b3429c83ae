"""Whether a server serves, asked from outside as a client would."""

import socket
import ssl

from dnc_serve.handler.addresses import host_port, reached_at
from dnc_serve.handler.config import ServeConfig
from dnc_serve.proto.health import SERVING, ask, status
from dnc_serve.proto.targets import DIRECTLY


def is_open(address: str) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection(reached_at(address), timeout=1.0):
            return True
    except OSError:
        return False


def health(address: str, config: ServeConfig, timeout_s: float) -> str:
    """What the streaming endpoint answers about its health, SERVING if all is well; or why it didn't answer.

    Behind TLS only the handshake is tried: its certificate names the host that clients use, which is not this one.
    """
    if config.tls_certificate:
        return _handshake(address, timeout_s)
    import grpc

    with grpc.insecure_channel(host_port(*reached_at(address)), options=DIRECTLY) as channel:
        try:
            return status(ask(channel)(b"", timeout=timeout_s, wait_for_ready=True))
        except grpc.RpcError as exc:
            return f"{exc.code().name}: {exc.details()}"


def _handshake(address: str, timeout_s: float) -> str:
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    trusting.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(reached_at(address), timeout=timeout_s) as plain,
            trusting.wrap_socket(plain),
        ):
            return SERVING
    except OSError as exc:
        return f"UNAVAILABLE: {exc}"
