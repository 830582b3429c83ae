"""Calls with one answer, or with one that comes in parts: tried again, at other hosts too, until the timeout."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from dnc_serve.client.contact import Contact
from dnc_serve.client.errors import DeadlineExceeded, DncError, SessionMoved, Unavailable
from dnc_serve.client.hosts import Hosts, Metadata, Route
from dnc_serve.client.retry import Retry, persist
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc

Result = TypeVar("Result")
Stub = dnc_pb2_grpc.DncServiceStub
Attempt = Callable[[Stub, float, Metadata], Awaitable[Result]]


class Calls:
    """Makes one client's calls; each may be sent more than once, so it must change nothing when repeated."""

    def __init__(self, hosts: Hosts, retry: Retry | None, timeout_s: float, connect_timeout_s: float) -> None:
        self.hosts = hosts
        self.retry = retry
        self.timeout_s = timeout_s
        self.contact = Contact(hosts.targets, timeout_s, connect_timeout_s)

    async def unary(self, method: str, request: Any, route: Route, session_id: str | None = None) -> Any:
        """The answer to one request."""

        async def attempt(stub: Stub, timeout_s: float, metadata: Metadata) -> Any:
            return await getattr(stub, method)(request, timeout=timeout_s, metadata=metadata)

        return await self.persist(attempt, route, session_id)

    async def collect(self, method: str, request: Any, route: Route, session_id: str) -> list[Any]:
        """All parts of an answer, from one attempt."""

        async def attempt(stub: Stub, timeout_s: float, metadata: Metadata) -> list[Any]:
            return [part async for part in getattr(stub, method)(request, timeout=timeout_s, metadata=metadata)]

        return await self.persist(attempt, route, session_id)

    async def persist(self, attempt: Attempt[Result], route: Route, session_id: str | None) -> Result:
        """The result of the first attempt that no passing trouble ends.

        Raises a short Unavailable if no server has ever answered.
        """
        deadline = time.monotonic() + self.timeout_s
        last_failure: DncError | None = None

        async def once() -> Result:
            nonlocal last_failure
            target = route.target
            remaining_s = max(0.001, deadline - time.monotonic())
            try:
                with self.contact.attempt(target):
                    async with self._going_on(route, target):
                        metadata = self.hosts.metadata(session_id, route.owner)
                        return await attempt(self.hosts.stub(target), remaining_s, metadata)
            except Unavailable as error:
                last_failure = error
                raise
            except DeadlineExceeded as error:
                if last_failure is not None:
                    raise last_failure from error
                raise

        try:
            return await persist(once, self.retry, self.contact.patience_s)
        except Unavailable as error:
            if self.contact.made:
                raise
            raise self.contact.unreachable(error) from None

    async def persist_stream(
        self, open_call: Callable[[Stub, Metadata], "grpc.aio.UnaryStreamCall[Any, Any]"], route: Route, session_id: str
    ) -> AsyncGenerator[Any, None]:
        """What a call without an end sends; opened again after a lost connection, cancelled when this is closed."""

        async def first() -> tuple[Any, "grpc.aio.UnaryStreamCall[Any, Any]", str]:
            target = route.target
            with self.contact.attempt(target):
                async with self._going_on(route, target):
                    call = open_call(self.hosts.stub(target), self.hosts.metadata(session_id, route.owner))
                    try:
                        return await anext(aiter(call)), call, target
                    except BaseException:
                        call.cancel()
                        raise

        failure: DncError | None = None
        while True:
            message, call, target = await persist(first, self.retry, self.contact.patience_s, failure)
            try:
                yield message
                async with self._going_on(route, target):
                    async for message in call:
                        yield message
                return
            except DncError as error:
                if not error.transient:
                    raise
                failure = error
            finally:
                call.cancel()

    @asynccontextmanager
    async def _going_on(self, route: Route, target: str) -> AsyncIterator[None]:
        """Turns gRPC's errors into ours, and the route to where the next attempt is to be made."""
        try:
            async with self.hosts.translated(target):
                yield
        except SessionMoved as error:
            raise route.follow(error) from error.__cause__  # what gRPC said
        except Unavailable:
            route.go_on(away_from=target)
            raise
