"""Calls with one answer, or with one that comes in parts: tried again, at other hosts too, until the timeout.

A server that has answered and then doesn't is restarting, as a rule, and worth the whole timeout. Where none has ever
answered, the address is wrong, or nothing was started there: whoever waits is better told soon.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from grpc.aio import EOF

from dnc_serve.client.checks import checked_seconds
from dnc_serve.client.errors import Cancelled, DeadlineExceeded, DncError, SessionMoved, Unavailable
from dnc_serve.client.info import ModelInfo
from dnc_serve.client.transport import Hosts, Route, Stub
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

logger = logging.getLogger(__package__)

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_CONNECT_TIMEOUT_S = 10.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Retry:
    """Random waits that double from `first_wait_s` to `longest_wait_s`, and start after what the server asks for."""

    first_wait_s: float = 0.05
    longest_wait_s: float = 2.0

    def __post_init__(self) -> None:
        checked_seconds("first_wait_s", self.first_wait_s)
        if not self.first_wait_s <= checked_seconds("longest_wait_s", self.longest_wait_s):
            raise ValueError(
                f"first_wait_s is {self.first_wait_s} and longest_wait_s {self.longest_wait_s}; "
                "expected 0 < first_wait_s <= longest_wait_s"
            )


class Backoff:
    """The pauses between one call's attempts, from its first failure on."""

    def __init__(self, calls: "Calls") -> None:
        self.last: DncError | None = None  # the latest that may pass
        self._calls = calls
        self._began = time.monotonic()
        self._pauses = 0

    def pause_s(self, error: DncError) -> float:
        """How long to wait after a failure. Raises what the call fails with if it can't pass, or none may be made
        again, or no further attempt would begin in time."""
        if isinstance(error, DeadlineExceeded) and self.last is not None:
            raise self._calls.told(self.last) from error
        retry = self._calls.retry
        if retry is None or not error.transient:
            raise self._calls.told(error)
        self.last = error
        wait_s = min(retry.longest_wait_s, retry.first_wait_s * 2**self._pauses)
        pause_s = random.uniform(0, wait_s) + (error.retry_after_s or 0.0)
        if time.monotonic() - self._began + pause_s >= self._calls.patience_s():
            raise self._calls.told(error)
        self._pauses += 1
        return pause_s


class Calls:
    """Makes one client's calls; each may be sent more than once, so it must change nothing when repeated."""

    def __init__(self, hosts: Hosts, retry: Retry | None, timeout_s: float, connect_timeout_s: float) -> None:
        self.hosts = hosts
        self.retry = retry
        self.timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._silent: set[str] = set()
        self._models: dict[tuple[str, str], ModelInfo] = {}  # as they were asked for, and by name and version

    async def model(self, name: str = "", version: str = "") -> ModelInfo:
        """What the server serves under this name, or without one as the default; asked for once."""
        if (name, version) not in self._models:
            route = self.hosts.route("")
            answer = await self.unary("GetModel", pb.GetModelRequest(model=name, version=version), route)
            if answer.HasField("workers"):
                await self.hosts.workers.learn(route.target, answer.workers)
            info = ModelInfo.from_wire(answer)
            for asked in ((name, version), (info.name, version), (info.name, info.version)):
                self._models[asked] = info
        return self._models[name, version]

    async def unary(self, method: str, request: Any, route: Route, session_id: str | None = None) -> Any:
        """The answer to one request."""
        return await self.made(lambda stub, **how: getattr(stub, method)(request, **how), route, session_id)

    async def collect(self, method: str, request: Any, route: Route, session_id: str) -> list[Any]:
        """All parts of an answer, from one attempt."""

        async def parts(stub: Stub, **how: Any) -> list[Any]:
            return [part async for part in getattr(stub, method)(request, **how)]

        return await self.made(parts, route, session_id)

    async def made(self, call: Callable[..., Awaitable[Result]], route: Route, session_id: str | None) -> Result:
        """The result of the first attempt that no passing trouble ends."""
        deadline = time.monotonic() + self.timeout_s
        backoff = Backoff(self)
        while True:
            target = route.target
            try:
                async with self._attempt(route, target):
                    stub, metadata = self.hosts.stub(target), self.hosts.metadata(session_id, route.owner)
                    return await call(stub, timeout=max(0.001, deadline - time.monotonic()), metadata=metadata)
            except DncError as error:
                pause_s = backoff.pause_s(error)
            await asyncio.sleep(pause_s)

    async def endless(self, method: str, request: Any, route: Route, session_id: str) -> AsyncGenerator[Any, None]:
        """What a call without an end sends; opened again after a lost connection, cancelled when this is closed."""
        backoff: Backoff | None = Backoff(self)
        while True:
            target = route.target
            call: Any = None
            try:
                while True:
                    async with self._attempt(route, target):  # nothing is yielded within: this may be closed there
                        if call is None:
                            metadata = self.hosts.metadata(session_id, route.owner)
                            call = getattr(self.hosts.stub(target), method)(request, metadata=metadata)
                        message = await call.read()
                    if message is EOF:
                        return
                    backoff = None
                    yield message
            except DncError as error:
                backoff = backoff or Backoff(self)
                pause_s = backoff.pause_s(error)
            finally:
                if call is not None:
                    call.cancel()
            await asyncio.sleep(pause_s)

    @asynccontextmanager
    async def _attempt(self, route: Route, target: str) -> AsyncIterator[None]:
        """Turns gRPC's errors into ours, notes whether the server answers, and turns the route to where the next
        attempt is to be made."""
        try:
            async with self.hosts.translated(target):
                yield
            self.heard(target)
        except DncError as error:
            if is_silence(error):
                self.missed(target, error)
            elif not isinstance(error, DeadlineExceeded | Cancelled):
                self.heard(target)
            if isinstance(error, SessionMoved):
                raise route.follow(error) from error.__cause__  # what gRPC said
            if isinstance(error, Unavailable):
                route.go_on(away_from=target)
            raise

    # Whether the servers answer.

    def patience_s(self) -> float:
        """How long attempts are repeated."""
        return self.timeout_s if self.hosts.answered else min(self.timeout_s, self._connect_timeout_s)

    def heard(self, target: str) -> None:
        """The server answered, be it with an error."""
        self.hosts.answered.add(target)
        self._silent.discard(target)

    def missed(self, target: str, error: DncError) -> None:
        """The server didn't answer; that is told once, until it does."""
        if target not in self._silent:
            self._silent.add(target)
            logger.warning("%s doesn't answer: %s; tried again for %g s", target, _why(error), self.patience_s())

    def told(self, error: DncError) -> DncError:
        """What the last error amounts to: short where no server has ever answered."""
        if self.hosts.answered or not is_silence(error):
            return error
        where = ", ".join(self.hosts.targets)
        told = Unavailable(f"no server answers at {where}: {_why(error)}", metadata=error.metadata)
        told.__suppress_context__ = True
        return told


def is_silence(error: DncError) -> bool:
    """Whether nobody answered; the reasons that a server has for being unavailable are classes below this one."""
    return type(error) is Unavailable


def _why(error: DncError) -> str:
    """The cause of a silence where it is known, else a question."""
    return error.message if "cause" in error.metadata else f"is `dnc serve` running there? ({error.message})"
