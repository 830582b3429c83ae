"""The servers that a client may talk to: channels, credentials, and which of them a session's calls go to."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from dnc_serve.client.errors import ClientClosed, DncError, SessionMoved
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc

logger = logging.getLogger(__name__)

Metadata = tuple[tuple[str, str], ...]
Token = str | Callable[[], str]

DEFAULT_TARGET = "localhost:8500"
_OPTIONS: tuple[tuple[str, str | int], ...] = (
    # A server that restarts is found again soon; what waits longer is our own backoff.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long a connection may take to be made
    # A host that vanished or froze answers no ping.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A ping that is not answered counts for a minute otherwise, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # one client, one connection to each host
)


@dataclass(frozen=True, slots=True)
class TLS:
    """PEM files; `ca` if the system's authorities don't know the server, a pair for mutual TLS."""

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None  # if it isn't the target's

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError for a file that can't be read, ValueError for half a pair."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError(f"certificate is {self.certificate} and key {self.key}; expected both or neither")
        ca, key, certificate = (
            Path(file).read_bytes() if file is not None else None for file in (self.ca, self.key, self.certificate)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)


class Hosts:
    """One channel to each server, opened when first needed, on the running event loop."""

    def __init__(self, targets: str | Sequence[str], token: Token | None, tls: TLS | bool | None) -> None:
        self.targets = (targets,) if isinstance(targets, str) else tuple(targets)
        if not self.targets or not all(isinstance(target, str) and target.strip() for target in self.targets):
            raise ValueError(f"target is {targets!r}; expected host:port, or a list of them")
        self._token = token
        self._tls = TLS() if tls is True else (tls or None)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closed = False
        if token is not None and self._tls is None and not all(map(_is_local, self.targets)):
            logger.warning("a token is sent without TLS to %s", ", ".join(self.targets))

    def stub(self, target: str) -> dnc_pb2_grpc.DncServiceStub:
        """The calls of one server. Raises ClientClosed."""
        return dnc_pb2_grpc.DncServiceStub(self.channel(target))

    def channel(self, target: str) -> grpc.aio.Channel:
        """The connection to one server. Raises ClientClosed."""
        if self._closed:
            raise ClientClosed("the client was closed")
        if target not in self._channels:
            self._channels[target] = self._open(target)
        return self._channels[target]

    def metadata(self, session_id: str | None = None, owner: str = "") -> Metadata:
        """What each call carries: the token and, for proxies, the session that they hash on and its owner if known."""
        token = self._token() if callable(self._token) else self._token
        entries: list[tuple[str, str]] = [] if token is None else [("authorization", f"Bearer {token}")]
        # An odd id is refused by the server, with its reason; as metadata gRPC would refuse it without one.
        if session_id is not None and session_id.isascii() and session_id.isprintable() and len(session_id) <= 128:
            entries.append(("x-dnc-session", session_id))
        if owner:
            entries.append(("x-dnc-owner", owner))
        return tuple(entries)

    def route(self, key: str) -> "Route":
        """The way of one session's calls; all clients with the same targets begin at the same one."""
        return Route(sorted(self.targets, key=lambda target: hashlib.blake2b(f"{target}|{key}".encode()).digest()))

    async def close(self) -> None:
        self._closed = True
        for channel in self._channels.values():
            await channel.close()

    def _open(self, target: str) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(target, options=_OPTIONS)
        options = [*_OPTIONS]
        if self._tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        return grpc.aio.secure_channel(target, self._tls.credentials(), options=options)


class Route:
    """Which server a session's calls go to now."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = tuple(targets)
        self._now = 0
        self.owner = ""  # where only a proxy among the targets can lead

    @property
    def target(self) -> str:
        return self._targets[self._now]

    def go_on(self, away_from: str) -> None:
        """That server did not answer: the next one is tried."""
        self.owner = ""
        if self.target == away_from:
            self._now = (self._now + 1) % len(self._targets)

    def follow(self, moved: SessionMoved) -> DncError:
        """Goes to the owner; returns the error as one that may pass.

        If the client was not given that host, it asks where it asked before and names the owner: a proxy may lead
        there, or the lease may end.
        """
        owner = moved.metadata.get("owner", "")
        error: DncError = moved
        if owner in self._targets:
            self._now = self._targets.index(owner)
            self.owner = ""
        else:
            self.owner = owner
            error = moved.with_note(
                f"{owner or 'its owner'} is none of this client's targets: {', '.join(self._targets)}"
            )
        error.transient = True
        return error


def _is_local(target: str) -> bool:
    return target.startswith(("localhost", "127.", "[::1]", "unix:"))
