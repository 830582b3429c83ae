"""The way to the servers: channels, credentials, what a lost connection means, which server a session's calls go to.

A fork leaves nothing of it that works. gRPC's threads stay behind in the process that was forked. If that one had
opened a connection, gRPC never works again in the child, also not for a new client: calls hang past every timeout, or
the process dies. (GRPC_ENABLE_FORK_SUPPORT changes nothing about that: it stands aside while other threads are in gRPC,
and those of asyncio always are.) So the child is told at once.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from weakref import WeakSet

import grpc.aio

from dnc_serve.client import errors
from dnc_serve.client.checks import token_fault
from dnc_serve.client.errors import ClientClosed, DncError, SessionMoved, Unauthenticated, Unavailable
from dnc_serve.client.tls import HANDSHAKE_FAULTS, TLS, closed_by, handshake_fault
from dnc_serve.client.workers import Metadata, Workers
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.targets import channel_options, check_target, is_loopback, place_of, proxy_of

logger = logging.getLogger(__name__)

Stub = dnc_pb2_grpc.DncServiceStub
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


class Hosts:
    """One channel to each server, opened when first needed, on the running event loop."""

    def __init__(self, targets: str | Sequence[str], token: Token | None, tls: TLS | bool | None) -> None:
        self.unusable = ""  # why nothing can be called any more
        check_process()
        _everywhere.add(self)
        given = [targets] if isinstance(targets, str) else targets
        if not isinstance(given, Sequence) or isinstance(given, bytes) or not given:
            raise ValueError(f"target is {targets!r}; expected host:port, or a list of them")
        self.targets = tuple(map(check_target, given))
        if not (token is None or callable(token)) and (fault := token_fault(token)):
            raise ValueError(f"token {fault}")
        if not (tls is None or isinstance(tls, bool | TLS)):
            raise ValueError(f"tls is {tls!r}; expected True, False, None or a TLS")
        self.tls = TLS() if tls is True else (tls or None)
        if self.tls is not None:
            self.tls.context()
        self.answered: set[str] = set()  # servers that ever did
        self._token = token
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.workers = Workers(self.stub, self.metadata, direct=token is None or self.tls is not None)
        if token is not None and self.tls is None:
            for target in self.targets:
                if (proxy := proxy_of(target)) is not None:
                    logger.warning("a token is sent without TLS to %s, through %s", target, proxy)
                elif not is_loopback(target):
                    logger.warning("a token is sent without TLS to %s", target)

    def __str__(self) -> str:
        return ", ".join(self.targets)

    def stub(self, target: str) -> Stub:
        """The calls of one server. Raises ClientClosed."""
        return Stub(self.channel(target))

    def channel(self, target: str) -> grpc.aio.Channel:
        """The connection to one server. Raises ClientClosed."""
        self.check()
        if target not in self._channels:
            self._channels[target] = self._open(target)
        return self._channels[target]

    def check(self) -> None:
        """Raises ClientClosed if nothing can be called any more."""
        if self.unusable:
            raise ClientClosed(self.unusable)

    async def close(self) -> None:
        self.unusable = self.unusable or "the client was closed"
        self.workers.close()
        for channel in self._channels.values():
            await channel.close()

    def metadata(self, session_id: str | None = None, owner: str = "") -> Metadata:
        """What each call carries: the token and, for proxies, the session that they hash on and its owner if known.

        Raises Unauthenticated if the present token can't be had, or can't be one.
        """
        token = self._present_token()
        entries: list[tuple[str, str]] = [] if token is None else [("authorization", f"Bearer {token}")]
        # An odd id is refused by the server, with its reason; as metadata gRPC would refuse it without one.
        if session_id is not None and session_id.isascii() and session_id.isprintable() and len(session_id) <= 128:
            entries.append(("x-dnc-session", session_id))
        if owner:
            entries.append(("x-dnc-owner", owner))
        return tuple(entries)

    def route(self, key: str) -> "Route":
        """The way of one session's calls; all clients with the same targets begin at the same one."""
        targets = sorted(self.targets, key=lambda target: hashlib.blake2b(f"{target}|{key}".encode()).digest())
        return Route(targets, key, self.workers)

    @asynccontextmanager
    async def translated(self, target: str) -> AsyncIterator[None]:
        """Raises what gRPC raises of a call to a server as a `DncError`, with the cause where that is known."""
        try:
            with errors.translated():
                yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # gRPC's word for a call that was ended on this side: nobody has cancelled the caller.
            self.check()
            raise Unavailable("the call was ended on this side") from None
        except Unavailable as error:
            if type(error) is not Unavailable or not (cause := await self._cause(target, error.message)):
                raise
            raise Unavailable(f"{cause} ({error.message})", metadata={"cause": cause}) from error.__cause__

    async def _cause(self, target: str, said: str) -> str:
        """What gRPC's words on a lost connection mean; empty if no more than they say."""
        for words, cause in HANDSHAKE_FAULTS.items():
            if self.tls is not None and words in said:
                return cause
        if (proxy := proxy_of(target)) is not None:
            return f"the way there is through {proxy}; `no_proxy` may name hosts that are reached without"
        place = place_of(target) if target not in self.answered else None
        if place is None:
            return ""
        if self.tls is not None and "Connection refused" in said:
            return await handshake_fault(*place, self.tls)
        return await closed_by(*place, self.tls) if "Socket closed" in said or "reset by peer" in said else ""

    def _present_token(self) -> str | None:
        if not callable(self._token):
            return self._token
        try:
            token = self._token()
        except Exception as exc:
            raise Unauthenticated(f"the token can't be had: its function raised {exc!r}") from exc
        if fault := token_fault(token):
            raise Unauthenticated(f"the token that its function returned {fault}")
        return token

    def _open(self, target: str) -> grpc.aio.Channel:
        global _used
        _used = True
        options = [*_OPTIONS, *channel_options(target)]
        if self.tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        if self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return grpc.aio.secure_channel(target, self.tls.credentials(), options=options)


class Route:
    """Which server a session's calls go to now."""

    def __init__(self, targets: Sequence[str], session_id: str, workers: Workers) -> None:
        self._targets = tuple(targets)
        self._session_id = session_id
        self._workers = workers
        self._now = 0
        self.owner = ""  # where only a proxy among the targets can lead

    @property
    def target(self) -> str:
        """The server, or that of its workers which has the session."""
        return self._workers.address(self._targets[self._now], self._session_id)

    def go_on(self, away_from: str) -> None:
        """That server did not answer: the next one is tried, or in the place of a worker the server as a whole."""
        self.owner = ""
        if self._workers.lost(self._targets[self._now], away_from):
            return
        if self._targets[self._now] == away_from:
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


_everywhere: WeakSet[Hosts] = WeakSet()
_used = False  # gRPC, by this process
_lost = ""  # why gRPC can't work in this process


def check_process() -> None:
    """Raises ClientClosed where gRPC can't work any more."""
    if _lost:
        raise ClientClosed(_lost)


def _after_fork() -> None:
    global _lost
    if _used:
        _lost = (
            "a client was used in the process that this one was forked from, and gRPC doesn't work after that: start "
            'processes with spawn (multiprocessing.get_context("spawn")), or use no client before the fork'
        )
        for hosts in _everywhere:
            hosts.unusable = _lost


os.register_at_fork(after_in_child=_after_fork)
