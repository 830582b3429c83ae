"""`Client` and `Session`: the asynchronous ones for callers without an event loop.

There is one implementation of the protocol, `AsyncClient`; these run it on a thread of the client's own and wait.
All of it may be used from several threads. Where one was used, no child of a fork can use any: see `transport.py`.
"""

import asyncio
import atexit
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, Literal, Self, TypeVar, overload

from dnc_serve.client.arrays import Array
from dnc_serve.client.async_client import DEFAULT_STREAMS, AsyncClient, AsyncMultiplex, Blob, Opener
from dnc_serve.client.calls import DEFAULT_CONNECT_TIMEOUT_S, DEFAULT_TIMEOUT_S, Retry
from dnc_serve.client.checks import checked_flag
from dnc_serve.client.errors import BadRequest, ClientClosed, DncError
from dnc_serve.client.info import (
    MemoryFrame,
    MemoryLook,
    ModelInfo,
    ModelSummary,
    PastTimestep,
    SessionInfo,
    StateAfter,
)
from dnc_serve.client.session import DEFAULT_MAX_CELLS, AsyncSession, Scope
from dnc_serve.client.tls import TLS
from dnc_serve.client.transport import DEFAULT_TARGET, Token, check_process

Result = TypeVar("Result")


class _Loops:
    """Event loops in threads of their own, each for one client at a time.

    They are closed at the interpreter's exit, not with their client: gRPC wakes any loop of the process for what
    arrives, and a call of a closed loop that ends late raises in another client's, which loses what came with it.
    """

    def __init__(self) -> None:
        self._idle: list[asyncio.AbstractEventLoop] = []
        self._threads: dict[asyncio.AbstractEventLoop, threading.Thread] = {}
        self._ends = False
        atexit.register(self._end)
        os.register_at_fork(after_in_child=self._idle.clear)  # threads don't come along through a fork

    def take(self) -> asyncio.AbstractEventLoop:
        """A loop that runs, and that nobody else uses."""
        try:
            return self._idle.pop()
        except IndexError:
            loop = asyncio.new_event_loop()
        self._threads[loop] = threading.Thread(target=loop.run_forever, name="dnc-client", daemon=True)
        self._threads[loop].start()
        return loop

    def give_back(self, loop: asyncio.AbstractEventLoop, pid: int) -> None:
        """Ends what still runs on the loop, which is then free for another client."""
        if os.getpid() != pid:
            return
        freed = asyncio.run_coroutine_threadsafe(self._free(loop), loop)
        if self._threads[loop] is not threading.current_thread():  # else it was dropped by what runs on it
            futures.wait([freed], timeout=5.0)
            if self._ends:
                self._close(loop)

    async def _free(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets all tasks come to their end, so that none is destroyed under way."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._idle.append(loop)

    def _end(self) -> None:
        self._ends = True  # clients that are still open give theirs back after this
        while self._idle:
            self._close(self._idle.pop())

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).add_done_callback(
            lambda _: loop.call_soon_threadsafe(loop.stop)
        )
        self._threads[loop].join(timeout=5.0)
        if not loop.is_running():
            loop.close()


_loops = _Loops()


class LoopThread:
    """An event loop in a thread, for one client; runs coroutines for any number of other threads."""

    def __init__(self) -> None:
        self._loop = _loops.take()
        self._pid = os.getpid()
        # Also at the interpreter's exit, if nobody stops it before.
        self._finalizer = weakref.finalize(self, _loops.give_back, self._loop, self._pid)

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result; it is cancelled if the waiting thread is interrupted. Raises ClientClosed."""
        if not self.is_here:
            coroutine.close()
            check_process()
            raise ClientClosed("this client belongs to the process that forked this one: make a new one after the fork")
        if self.stopped:
            coroutine.close()
            raise ClientClosed("the client was closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except DncError as error:
            # Where it came from on the client's own thread tells the caller nothing.
            raise error.with_traceback(None) from error.__cause__
        except BaseException:
            future.cancel()
            raise

    def start(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Begins the coroutine and doesn't wait for it; it comes to nothing where the client was closed or forked."""
        if not self.is_here or self.stopped:
            coroutine.close()
        else:
            asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    @property
    def is_here(self) -> bool:
        """Whether this is the process that the thread belongs to; a fork leaves it behind."""
        return os.getpid() == self._pid

    @property
    def stopped(self) -> bool:
        """Whether nothing can be run any more."""
        return not self._finalizer.alive

    def stop(self) -> None:
        """Ends the thread, and what still runs on it."""
        self._finalizer()

    def iterate(self, items: AsyncGenerator[Result, None]) -> Generator[Result, None, None]:
        """What an asynchronous generator gives, one by one; it is closed with this one."""
        one_at_a_time = asyncio.Lock()

        async def next_item() -> tuple[Result, ...]:
            async with one_at_a_time:
                async for item in items:
                    return (item,)
                return ()

        async def close() -> None:
            async with one_at_a_time:  # also after a wait that was interrupted
                await items.aclose()

        try:
            while item := self.run(next_item()):
                yield item[0]
        finally:
            self.start(close())


class _Closing(ABC):
    """What a `with` closes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None: ...


class _Opener(_Closing):
    """Opens sessions; the base of `Client` and `Multiplex`."""

    def __init__(self, thread: LoopThread, opener: Opener) -> None:
        self._thread = thread
        self._opener = opener

    def __repr__(self) -> str:
        closed = ", closed" if self._thread.stopped else ""
        return f"<{type(self).__name__} of {self._opener.calls.hosts}{closed}>"

    def session(
        self,
        id: str | None = None,
        *,
        allow_existing: bool = True,
        create: bool = True,
        model: str | None = None,
        writer_id: int | None = None,
        position: int | None = None,
        experience: int | None = None,
    ) -> "Session":
        """A session, created or taken up where it was left; one with a random id if none is given.

        Without `allow_existing` one that is there raises SessionExists, without `create` one that isn't
        SessionNotFound. A new one is of the default model, or of the one that is named. `writer_id`, `position` and
        `experience`, as an earlier handle had them, go on in its place.
        """
        session = self._opener.session(
            id, allow_existing=allow_existing, create=create, model=model, writer_id=writer_id, position=position,
            experience=experience,
        )  # fmt: skip
        return Session(self._thread, self._thread.run(session.open()))


class Client(_Opener):
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
        super().__init__(LoopThread(), self._client)
        # Reentrant, for a signal's handler may close what is being closed.
        self._closing = threading.RLock()

    def close(self) -> None:
        """Leaves all sessions and closes the connections; the sessions stay on the server. Again, it does nothing."""
        with self._closing:
            if self._thread.is_here and not self._thread.stopped:
                self._thread.run(self._client.close())
                self._thread.stop()

    def multiplex(self, streams: int = DEFAULT_STREAMS) -> "Multiplex":
        """Many sessions on a few streams, and a `step` for many at once."""
        return Multiplex(self._thread, self._client.multiplex(streams))

    def model(self, name: str | None = None, version: str | None = None) -> ModelInfo:
        """The model of this name, or the default one, in a version, or that of new sessions; asked for once. Raises
        ModelNotFound."""
        return self._thread.run(self._client.model(name, version))

    def models(self) -> list[ModelSummary]:
        """All models that the server has, the default first, and all versions of each, first that of new sessions."""
        return self._thread.run(self._client.models())

    def load_model(
        self, name: str, source: str | None = None, version: str | None = None, *, share: float | None = None
    ) -> ModelSummary:
        """Has the server serve a version of a model from a folder, or a file, of its own machine: see
        `AsyncClient.load_model`."""
        return self._thread.run(self._client.load_model(name, source, version, share=share))

    def unload_model(self, name: str, version: str, *, carry_over: bool = False) -> int:
        """Has the server drop a version that was loaded: see `AsyncClient.unload_model`."""
        return self._thread.run(self._client.unload_model(name, version, carry_over=carry_over))

    def sessions(self, prefix: str = "", page_size: int = 100, *, model: str | None = None) -> Iterator[SessionInfo]:
        """All sessions that this client may see, or those of one model, by id."""
        return self._thread.iterate(self._client.sessions(prefix, page_size, model=model))

    def step_with_state(
        self, inputs: Any, state: Blob = b"", *, reset_experience: bool = False, model: str | None = None
    ) -> StateAfter:
        """Outputs [T, O] for inputs [T, I], and the state after them, from a state that this caller keeps; the server
        stores nothing. See `AsyncClient.step_with_state`."""
        return self._thread.run(
            self._client.step_with_state(inputs, state, reset_experience=reset_experience, model=model)
        )

    def import_session(self, id: str, blob: Blob) -> "Session":
        """An exported session under the given id. Raises BadBlob, ModelMismatch or SessionExists."""
        return Session(self._thread, self._thread.run(self._client.import_session(id, blob)))


class Session(_Closing):
    """A session of a server; see `AsyncSession`, whose calls these are."""

    def __init__(self, thread: LoopThread, session: AsyncSession) -> None:
        self._thread = thread
        self._session = session

    def __repr__(self) -> str:
        return f"<Session {self.id!r}, {self._session.standing}>"

    def close(self) -> None:
        """Leaves the session; on the server it stays as it is. A handle that is dropped is left too."""
        if self._thread.is_here and not self._thread.stopped:
            self._thread.run(self._session.close())

    @property
    def id(self) -> str:
        """What it is called on the server."""
        return self._session.id

    @property
    def created(self) -> bool:
        """Whether it was not there before."""
        return self._session.created

    @property
    def model(self) -> str:
        """The name of its model."""
        return self._session.model

    @property
    def model_version(self) -> str:
        """Which version of it."""
        return self._session.model_version

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
    def step(self, inputs: Any, *, reset_experience: bool = False) -> Array: ...
    @overload
    def step(
        self, inputs: Any, *, reset_experience: bool = False, debug: Literal[True]
    ) -> tuple[Array, dict[str, Array]]: ...
    def step(
        self, inputs: Any, *, reset_experience: bool = False, debug: bool = False
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Outputs [T, O] for inputs [T, I] of any length; with `debug` also the memory after each timestep."""
        if checked_flag("debug", debug):
            return self._thread.run(self._session.step(inputs, reset_experience=reset_experience, debug=True))
        return self._thread.run(self._session.step(inputs, reset_experience=reset_experience))

    def stream(self, chunks: Iterable[Any]) -> Iterator[Array]:
        """Outputs for each chunk of inputs [T, I], in order, with many chunks under way at once.

        Chunks are taken from the iterable as the window has room, ahead of the outputs; those that were taken are
        applied, also if the outputs are not waited for. After a lost connection it goes on where it was.
        """
        for awaited in self._session.awaited(chunks):
            outputs = self._thread.run(awaited)
            if outputs is not None:
                yield outputs

    def reset(self, scope: Scope = "experience") -> None:
        """Zeroes the memory (`experience`; controller state and read vectors stay), or makes all as new (`all`)."""
        self._thread.run(self._session.reset(scope))

    def info(self) -> SessionInfo:
        """The session as the server describes it."""
        return self._thread.run(self._session.info())

    def resync(self) -> SessionInfo:
        """Goes on from where the server stands, whatever this client knew."""
        return self._thread.run(self._session.resync())

    def dump(self, names: Sequence[str] = (), position: int | None = None, *, flat: bool = False) -> dict[str, Array]:
        """The fields of the session's state by name, in their own shapes, now or at an earlier position.

        Where a model has several memories or layers, the first axis counts them; with `flat` it always does, and the
        second holds the rest.
        """
        return self._thread.run(self._session.dump(names, position, flat=flat))

    def look(
        self, names: Sequence[str] = (), position: int | None = None, max_cells: int = DEFAULT_MAX_CELLS
    ) -> MemoryLook:
        """As `dump`, but the first axis always counts parts, and large arrays are thinned on the server."""
        return self._thread.run(self._session.look(names, position, max_cells))

    def watch(
        self, names: Sequence[str] = (), max_frames_per_second: float = 30.0, max_cells: int = DEFAULT_MAX_CELLS
    ) -> Generator[MemoryFrame, None, None]:
        """The session's memory while it works; frames that come faster than they are taken are skipped.

        Whoever closes it, or drops it, ends the watching.
        """
        return self._thread.iterate(self._session.watch(names, max_frames_per_second, max_cells))

    def replay(
        self,
        after: int,
        until: int | None = None,
        names: Sequence[str] = (),
        *,
        every: int = 1,
        max_cells: int = DEFAULT_MAX_CELLS,
    ) -> list[PastTimestep]:
        """The timesteps between two positions again: what came in, what was answered, and what each left in the state.

        Of `every` so many timesteps one is given, and the last; arrays are thinned as in a look. Raises PositionGone
        where the journal doesn't reach back so far.
        """
        return self._thread.run(self._session.replay(after, until, names, every=every, max_cells=max_cells))

    def fork(self, id: str | None = None, position: int | None = None) -> "Session":
        """An independent copy under another id, now or at an earlier position."""
        return Session(self._thread, self._thread.run(self._session.fork(id, position)))

    def migrate(self, version: str | None = None) -> bool:
        """Goes on with another version of the model: see `AsyncSession.migrate`."""
        return self._thread.run(self._session.migrate(version))

    def export(self) -> bytes:
        """The session as a `safetensors` blob that `import_session` takes up elsewhere."""
        return self._thread.run(self._session.export())

    def delete(self) -> bool:
        """Ends the session on the server; False if it had ended already."""
        return self._thread.run(self._session.delete())


class Multiplex(_Opener):
    """Sessions that share a few streams to each server."""

    def __init__(self, thread: LoopThread, multiplex: AsyncMultiplex) -> None:
        super().__init__(thread, multiplex)
        self._multiplex = multiplex

    def close(self) -> None:
        """Leaves all its sessions and ends the streams."""
        if self._thread.is_here and not self._thread.stopped:
            self._thread.run(self._multiplex.close())

    def step(self, inputs: Mapping[Session, Any]) -> dict[Session, Array | DncError]:
        """Outputs [T, O] for inputs [T, I] of several sessions at once; in the place of what failed, its error."""
        if not isinstance(inputs, Mapping) or not all(isinstance(session, Session) for session in inputs):
            raise BadRequest(f"inputs is of type {type(inputs).__name__}, expected a mapping of sessions to inputs")
        by_async = {session._session: session for session in inputs}
        stepped = self._thread.run(self._multiplex.step({own: inputs[session] for own, session in by_async.items()}))
        return {session: stepped[own] for own, session in by_async.items()}
