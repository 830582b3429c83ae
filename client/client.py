"""`Client` and `Session`: the asynchronous ones for callers without an event loop.

There is one implementation of the protocol, `AsyncClient`; these run it on a thread of the client's own and wait.
All of it may be used from several threads. Where one was used, no child of a fork can use any: see `process.py`.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, overload

from dnc_serve.client.arrays import Float32
from dnc_serve.client.async_client import DEFAULT_STREAMS, AsyncClient, AsyncMultiplex, Blob
from dnc_serve.client.checks import checked_flag
from dnc_serve.client.contact import DEFAULT_CONNECT_TIMEOUT_S, DEFAULT_TIMEOUT_S
from dnc_serve.client.errors import BadRequest, DncError
from dnc_serve.client.hosts import DEFAULT_TARGET, Token
from dnc_serve.client.info import MemoryFrame, MemoryLook, ModelInfo, SessionInfo
from dnc_serve.client.loop_thread import LoopThread
from dnc_serve.client.resume import Entry
from dnc_serve.client.retry import Retry
from dnc_serve.client.session import DEFAULT_MAX_CELLS, AsyncSession, Scope, chunks_of
from dnc_serve.client.tls import TLS

Item = TypeVar("Item")


class Client:
    """A client of one server, or of several that share a store; see `AsyncClient` for the settings."""

    def __init__(
        self,
        targets: str | Sequence[str] = DEFAULT_TARGET,
        *,
        token: Token | None = None,
        tls: TLS | bool | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
        retry: Retry | None = Retry(),  # noqa: B008  frozen
    ) -> None:
        self._client = AsyncClient(
            targets, token=token, tls=tls, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, retry=retry
        )
        self._thread = LoopThread()
        # Reentrant, for a signal's handler may close what is being closed.
        self._closing = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves all sessions and closes the connections; the sessions stay on the server. Again, it does nothing."""
        with self._closing:
            if self._thread.is_here and not self._thread.stopped:
                self._thread.run(self._client.close())
                self._thread.stop()

    def session(
        self,
        id: str | None = None,
        *,
        allow_existing: bool = True,
        create: bool = True,
        writer_id: int | None = None,
        position: int | None = None,
        experience: int | None = None,
    ) -> "Session":
        """A session, created or taken up where it was left; one with a random id if none is given.

        Without `allow_existing` one that is there raises SessionExists, without `create` one that isn't
        SessionNotFound. `writer_id`, `position` and `experience`, as an earlier handle had them, go on in its place.
        """
        session = self._client.session(
            id, allow_existing=allow_existing, create=create, writer_id=writer_id, position=position,
            experience=experience,
        )  # fmt: skip
        return Session(self._thread, self._thread.run(session.open()))

    def multiplex(self, streams: int = DEFAULT_STREAMS) -> "Multiplex":
        """Many sessions on a few streams, and a `step` for many at once."""
        return Multiplex(self._thread, self._client.multiplex(streams))

    def model(self) -> ModelInfo:
        """What the server serves; asked for once."""
        return self._thread.run(self._client.model())

    def sessions(self, prefix: str = "", page_size: int = 100) -> Iterator[SessionInfo]:
        """All sessions that this client may see, by id."""
        return _iterate(self._thread, self._client.sessions(prefix, page_size))

    def import_session(self, id: str, blob: Blob) -> "Session":
        """An exported session under the given id. Raises BadBlob, ModelMismatch or SessionExists."""
        return Session(self._thread, self._thread.run(self._client.import_session(id, blob)))


class Session:
    """A session of a server; see `AsyncSession`, whose calls these are."""

    def __init__(self, thread: LoopThread, session: AsyncSession) -> None:
        self._thread = thread
        self._session = session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the session; on the server it stays as it is. A handle that is dropped is left too."""
        if self._thread.is_here:
            self._thread.run(self._session.close())

    @property
    def id(self) -> str:
        return self._session.id

    @property
    def created(self) -> bool:
        """Whether it was not there before."""
        return self._session.created

    @property
    def incarnation(self) -> int:
        """What tells it from an earlier session of the same id."""
        return self._session.incarnation

    @property
    def writer_id(self) -> int:
        """Whom the server tells what this handle sent; kept, a new handle may go on in its place."""
        return self._session.writer_id

    @property
    def position(self) -> int:
        """Timesteps that were consumed and answered."""
        return self._session.position

    @property
    def durable_position(self) -> int:
        """Timesteps that survive a power loss of the server, as far as it has said so."""
        return self._session.durable_position

    @property
    def experience(self) -> int:
        """How often the experience was reset."""
        return self._session.experience

    @overload
    def step(self, inputs: Any, *, reset_experience: bool = False) -> Float32: ...
    @overload
    def step(
        self, inputs: Any, *, reset_experience: bool = False, debug: Literal[True]
    ) -> tuple[Float32, dict[str, Float32]]: ...
    def step(
        self, inputs: Any, *, reset_experience: bool = False, debug: bool = False
    ) -> Float32 | tuple[Float32, dict[str, Float32]]:
        """Outputs [T, O] for inputs [T, I] of any length; with `debug` also the memory after each timestep."""
        if checked_flag("debug", debug):
            return self._thread.run(self._session.step(inputs, reset_experience=reset_experience, debug=True))
        return self._thread.run(self._session.step(inputs, reset_experience=reset_experience))

    def stream(self, chunks: Iterable[Any]) -> Iterator[Float32]:
        """Outputs for each chunk of inputs [T, I], in order, with many chunks under way at once.

        Chunks are taken from the iterable as the window has room, ahead of the outputs; those that were taken are
        applied, also if the outputs are not waited for. After a lost connection it goes on where it was.
        """
        groups: deque[list[Entry]] = deque()
        fault: Exception | None = None
        source = chunks_of(chunks)
        while fault is None and not self._session.failed:
            try:
                chunk = next(source)
            except StopIteration:
                break
            except Exception as exc:  # told after the outputs of what came before
                fault = exc
            else:
                ready, fault = self._thread.run(self._put(chunk, groups))
                yield from ready
        while groups:
            yield self._thread.run(self._session.outputs(groups.popleft()))
        if fault is not None:
            raise fault

    async def _put(self, chunk: Any, groups: deque[list[Entry]]) -> tuple[list[Float32], DncError | None]:
        """Sends a chunk; returns the outputs that are there, and waits only if the window has no room. Also returns why
        the chunk can't be sent, if it can't."""
        fault: DncError | None = None
        try:
            groups.append(self._session.enter(chunk))
        except DncError as error:
            fault = error
        ready: list[Float32] = []
        while groups and (groups[0][-1].settled or not self._session.has_room):
            ready.append(await self._session.outputs(groups.popleft()))
        return ready, fault

    def reset(self, scope: Scope = "experience") -> None:
        """Zeroes the memory (`experience`; controller state and read vectors stay), or makes all as new (`all`)."""
        self._thread.run(self._session.reset(scope))

    def info(self) -> SessionInfo:
        """The session as the server describes it."""
        return self._thread.run(self._session.info())

    def resync(self) -> SessionInfo:
        """Goes on from where the server stands, whatever this client knew."""
        return self._thread.run(self._session.resync())

    def dump(self, names: Sequence[str] = (), position: int | None = None) -> dict[str, Float32]:
        """The session's memory and controller state by name, now or at an earlier position."""
        return self._thread.run(self._session.dump(names, position))

    def look(
        self, names: Sequence[str] = (), position: int | None = None, max_cells: int = DEFAULT_MAX_CELLS
    ) -> MemoryLook:
        """As `dump`, but arrays in their own shapes, those of more than `max_cells` numbers thinned on the server."""
        return self._thread.run(self._session.look(names, position, max_cells))

    def watch(
        self, names: Sequence[str] = (), max_frames_per_second: float = 30.0, max_cells: int = DEFAULT_MAX_CELLS
    ) -> Generator[MemoryFrame, None, None]:
        """The session's memory while it works; frames that come faster than they are taken are skipped.

        Whoever closes it, or drops it, ends the watching.
        """
        return _iterate(self._thread, self._session.watch(names, max_frames_per_second, max_cells))

    def fork(self, id: str | None = None, position: int | None = None) -> "Session":
        """An independent copy under another id, now or at an earlier position."""
        return Session(self._thread, self._thread.run(self._session.fork(id, position)))

    def export(self) -> bytes:
        """The session as a `safetensors` blob that `import_session` takes up elsewhere."""
        return self._thread.run(self._session.export())

    def delete(self) -> bool:
        """Ends the session on the server; False if it had ended already."""
        return self._thread.run(self._session.delete())


class Multiplex:
    """Sessions that share a few streams to each server."""

    def __init__(self, thread: LoopThread, multiplex: AsyncMultiplex) -> None:
        self._thread = thread
        self._multiplex = multiplex

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves all its sessions and ends the streams."""
        if self._thread.is_here:
            self._thread.run(self._multiplex.close())

    def session(
        self,
        id: str | None = None,
        *,
        allow_existing: bool = True,
        create: bool = True,
        writer_id: int | None = None,
        position: int | None = None,
        experience: int | None = None,
    ) -> Session:
        """As `Client.session`, on one of the common streams."""
        session = self._multiplex.session(
            id, allow_existing=allow_existing, create=create, writer_id=writer_id, position=position,
            experience=experience,
        )  # fmt: skip
        return Session(self._thread, self._thread.run(session.open()))

    def step(self, inputs: Mapping[Session, Any]) -> dict[Session, Float32 | DncError]:
        """Outputs [T, O] for inputs [T, I] of several sessions at once; in the place of what failed, its error."""
        if not isinstance(inputs, Mapping) or not all(isinstance(session, Session) for session in inputs):
            raise BadRequest(f"inputs is of type {type(inputs).__name__}, expected a mapping of sessions to inputs")
        by_async = {session._session: session for session in inputs}
        stepped = self._thread.run(self._multiplex.step({own: inputs[session] for own, session in by_async.items()}))
        return {session: stepped[own] for own, session in by_async.items()}


def _iterate(thread: LoopThread, items: AsyncGenerator[Item, None]) -> Generator[Item, None, None]:
    """What an asynchronous generator gives, one by one; it is closed with this one."""
    one_at_a_time = asyncio.Lock()

    async def next_item() -> tuple[Item, ...]:
        async with one_at_a_time:
            async for item in items:
                return (item,)
            return ()

    async def close() -> None:
        async with one_at_a_time:  # also after a wait that was interrupted
            await items.aclose()

    try:
        while item := thread.run(next_item()):
            yield item[0]
    finally:
        thread.start(close())
