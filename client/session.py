"""`AsyncSession`: one session of a server, as its user sees it."""

import asyncio
import secrets
import weakref
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, suppress
from typing import Any, Literal, Self, overload

from dnc_serve.client.arrays import Array, as_inputs, assembled, joined, to_wire
from dnc_serve.client.calls import Calls
from dnc_serve.client.checks import (
    UINT32,
    UINT64,
    checked_flag,
    checked_id,
    checked_model,
    checked_names,
    checked_number,
    checked_position,
    checked_rate,
    checked_version,
)
from dnc_serve.client.errors import (
    BadRequest,
    Cancelled,
    DncError,
    Internal,
    ModelMismatch,
    ModelNotFound,
    SessionError,
    SessionReplaced,
)
from dnc_serve.client.info import MemoryFrame, MemoryLook, ModelInfo, PastTimestep, SessionInfo
from dnc_serve.client.ledger import Entry, Ledger
from dnc_serve.client.stream import Delivery, OpenStream
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

try:  # without OpenTelemetry nothing is traced
    from opentelemetry.trace import get_current_span
except ImportError:
    get_current_span = None  # type: ignore[assignment]

Scope = Literal["experience", "all"]
# Answered chunks of one session that are kept until the server has them on disk.
KEEP_BYTES = 64 << 20
# More than this of an array, few screens can show.
DEFAULT_MAX_CELLS = 65_536
_SCOPES = {"experience": pb.RESET_SCOPE_EXPERIENCE, "all": pb.RESET_SCOPE_ALL}


class AsyncSession:
    """A session that is created, or taken up where it was left, by `async with` or `await`.

    Calls may overlap: they are applied in the order in which they were made. A `step` that fails counts as not made:
    `position` is as before, and the same step with the same inputs may be made again, whatever became of the first
    one; the server applies it once.

    What it sends bears its `writer_id`: another handle that streams the same inputs from the same position gets
    StepConflict, in this process or elsewhere. Whoever keeps `writer_id`, `position` and `experience` can go on from
    there with a new handle, also after a crash of this process: what the server has applied since is answered again.
    """

    def __init__(
        self,
        calls: Calls,
        open_stream: OpenStream,
        handles: "weakref.WeakSet[AsyncSession]",
        session_id: str | None,
        *,
        allow_existing: bool = True,
        create: bool = True,
        model: str | None = None,
        writer_id: int | None = None,
        position: int | None = None,
        experience: int | None = None,
    ) -> None:
        self.id = new_session_id() if session_id is None else checked_id(session_id)
        # Any 64-bit number but 0, which stands for all who name none.
        new_writer_id = secrets.randbits(64) or 1
        self.writer_id = new_writer_id if writer_id is None else checked_number("writer_id", writer_id, 1, UINT64)
        self._from = (
            checked_position(position),
            None if experience is None else checked_number("experience", experience, 0, UINT64),
        )
        self.created = False
        self.incarnation = 0
        self.calls = calls
        self._allow_existing = checked_flag("allow_existing", allow_existing)
        self._create = checked_flag("create", create)
        self._wanted_model = checked_model(model)
        self._open_stream = open_stream
        self._handles = handles  # those that are open
        self._route = calls.hosts.route(self.id)
        self._turn = asyncio.Lock()
        self._delivery: Delivery | None = None
        self._drop: weakref.finalize[..., AsyncSession] | None = None
        self._begins_here = False  # at its creation, as far as this client knows
        self._model: ModelInfo | None = None
        self._chunk_timesteps = 1

    async def open(self) -> Self:
        """Creates the session, or takes it up. Raises SessionExists or SessionNotFound where only one is allowed."""
        if self._create:
            request = pb.CreateSessionRequest(
                session_id=self.id, allow_existing=self._allow_existing, model=self._wanted_model
            )
            response = await self._unary("CreateSession", request)
            self.created = self._begins_here = response.created
        else:
            response = await self._unary("GetSession", pb.GetSessionRequest(session_id=self.id))
            if self._wanted_model not in ("", found := response.session.model):
                raise ModelMismatch(f"session {self.id!r} is of the model {found!r}, expected {self._wanted_model!r}")
        await self.take_up(SessionInfo.from_wire(response.session), *self._from)
        return self

    async def _make_again(self) -> int:
        """Creates the session that the server lost; returns its new incarnation.

        Raises SessionReplaced if somebody else was faster, and has used it already.
        """
        request = pb.CreateSessionRequest(session_id=self.id, allow_existing=True, model=self.model)
        info = SessionInfo.from_wire((await self._unary("CreateSession", request)).session)
        if info.position or info.experience:
            raise SessionReplaced(f"the server lost session {self.id!r}, and somebody has made another one since")
        self.incarnation = info.incarnation
        return info.incarnation

    async def take_up(self, info: SessionInfo, position: int | None = None, experience: int | None = None) -> None:
        """Goes on from where the server says that the session stands, or from an earlier place."""
        try:
            model = await self.calls.model(info.model, info.model_version)
        except ModelNotFound:  # unloaded just now, and the session carried over
            model = await self.calls.model(info.model)
        self._model = model
        self._chunk_timesteps = model.chunk_timesteps()
        self.incarnation = info.incarnation
        ledger = Ledger(
            info.position if position is None else position,
            info.experience if experience is None else experience,
            window=model.max_in_flight_chunks,
            keep_bytes=0 if model.durability == "off" else KEEP_BYTES,
        )
        if self._delivery is not None:
            await self._delivery.close()
        makes_again = self._begins_here and self.calls.retry is not None
        self._delivery = Delivery(
            self.id, info.incarnation, ledger, self._route, self.calls, self._open_stream,
            weakref.WeakMethod(self._make_again) if makes_again else None,
        )  # fmt: skip
        if self._drop is not None:
            self._drop.detach()
        # Whoever drops the handle has left the session: its stream is somebody else's to have.
        self._drop = weakref.finalize(self, _leave, asyncio.get_running_loop(), self._delivery)
        self._drop.atexit = False
        self._handles.add(self)

    async def close(self) -> None:
        """Leaves the session; on the server it stays as it is. A handle that is dropped is left too."""
        if self._delivery is not None:
            await self._delivery.close()
        self._handles.discard(self)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.open().__await__()

    def __repr__(self) -> str:
        return f"<AsyncSession {self.id!r}, {self.standing}>"

    @property
    def standing(self) -> str:
        """Where it stands, in words."""
        if self._delivery is None:
            return "not open"
        return f"position {self.position}, experience {self.experience}" + ("" if self in self._handles else ", left")

    @property
    def model(self) -> str:
        """The name of its model; of one that isn't open, what was asked for."""
        return self._wanted_model if self._model is None else self._model.name

    @property
    def model_version(self) -> str:
        """Which version of it; empty of one that isn't open."""
        return "" if self._model is None else self._model.version

    @property
    def position(self) -> int:
        """Timesteps that were consumed and answered."""
        return self._opened.ledger.settled_position

    @property
    def durable_position(self) -> int:
        """Timesteps that survive a power loss of the server, as far as it has said so."""
        return self._opened.ledger.durable_position

    @property
    def experience(self) -> int:
        """How often the experience was reset."""
        return self._opened.ledger.experience

    # Timesteps.

    @overload
    async def step(self, inputs: Any, *, reset_experience: bool = False) -> Array: ...
    @overload
    async def step(
        self, inputs: Any, *, reset_experience: bool = False, debug: Literal[True]
    ) -> tuple[Array, dict[str, Array]]: ...
    async def step(
        self, inputs: Any, *, reset_experience: bool = False, debug: bool = False
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Outputs [T, O] for inputs [T, I] of any length; with `debug` also the memory after each timestep.

        `reset_experience` zeroes the memory first, as one operation with the first timesteps. The debug arrays are
        [layer × time, …] under the seed library's names.
        """
        reset_experience, debug = checked_flag("reset_experience", reset_experience), checked_flag("debug", debug)
        async with self._turn:
            results = await self.results(self.enter(inputs, reset_experience=reset_experience, debug=debug))
        outputs = joined([result.outputs for result in results])
        if not debug:
            return outputs
        return outputs, {name: joined([result.debug[name] for result in results]) for name in results[0].debug}

    async def stream(self, chunks: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Array]:
        """Outputs for each chunk of inputs [T, I], in order, with many chunks under way at once.

        Chunks are taken from the iterable as the window has room, ahead of the outputs; those that were taken are
        applied, also if the outputs are not waited for. After a lost connection it goes on where it was.
        """
        if isinstance(chunks, AsyncIterable):
            async for fed in self._stream_fed(chunks):
                yield fed
            return
        for awaited in self.awaited(chunks):
            outputs = await awaited
            if outputs is not None:
                yield outputs

    def awaited(self, chunks: Iterable[Any]) -> Iterator[Coroutine[Any, Any, Array | None]]:
        """What a stream waits for, one after the other: each gives a chunk's outputs, or nothing yet.

        Chunks are taken by whoever asks for the next one; all the rest belongs on the client's event loop.
        """
        groups: deque[list[Entry]] = deque()
        faults: list[Exception] = []  # told after the outputs of what came before

        def is_due() -> bool:
            return bool(groups) and (groups[0][-1].settled or not self._opened.ledger.has_room)

        async def put(chunk: Any) -> Array | None:
            try:
                groups.append(self.enter(chunk))
            except DncError as error:
                faults.append(error)
            return await self.outputs(groups.popleft()) if is_due() else None

        source = chunks_of(chunks)
        while not faults and not self._opened.failed:
            try:
                chunk = next(source)
            except StopIteration:
                break
            except Exception as exc:
                faults.append(exc)
                break
            yield put(chunk)
            while is_due():
                yield self.outputs(groups.popleft())
        while groups:
            yield self.outputs(groups.popleft())
        if faults:
            raise faults[0]

    async def _stream_fed(self, chunks: AsyncIterable[Any]) -> AsyncIterator[Array]:
        """The same where waiting for the next chunk must not hold up the outputs of those before."""
        groups: deque[list[Entry]] = deque()
        fed = asyncio.Event()

        async def feed() -> None:
            async for chunk in chunks:
                await self._opened.room()
                if self._opened.failed:
                    break
                groups.append(self.enter(chunk))
                fed.set()

        feeder = asyncio.create_task(feed())
        feeder.add_done_callback(lambda _: fed.set())
        try:
            while groups or not feeder.done():
                while groups:
                    yield await self.outputs(groups.popleft())
                fed.clear()
                if not feeder.done():
                    await fed.wait()
            feeder.result()
        finally:
            feeder.cancel()

    def enter(self, inputs: Any, *, reset_experience: bool = False, debug: bool = False) -> list[Entry]:
        """Sends inputs on their way, in as many pieces as the server's limits ask for, without waiting."""
        delivery, model = self._opened, self._model
        assert model is not None
        delivery.check()
        array = as_inputs(inputs, model.inputs)
        at_most = model.chunk_timesteps(debug=True) if debug else self._chunk_timesteps
        group = [
            self._enter_piece(delivery.ledger, array[start : start + at_most], reset_experience and not start, debug)
            for start in range(0, len(array), at_most)
        ]
        delivery.push()
        return group

    def _enter_piece(self, ledger: Ledger, piece: Array, reset_experience: bool, debug: bool) -> Entry:
        request = pb.StreamRequest()
        chunk = request.chunk
        chunk.traceparent = _traceparent()
        chunk.session_id = self.id
        chunk.incarnation = self.incarnation
        chunk.writer_id = self.writer_id
        chunk.position = ledger.position
        chunk.inputs.CopyFrom(to_wire(piece))
        chunk.reset_experience = reset_experience
        chunk.debug = debug
        return ledger.enter(request, piece.nbytes, timesteps=len(piece), resets=reset_experience)

    async def results(self, group: list[Entry]) -> list[Any]:
        """The answers to all pieces; if one fails, or the caller gives up, none of them counts as made."""
        delivery = self._opened
        try:
            for entry in group:
                await delivery.settled(entry)
        except BaseException as exc:
            applied = sum(entry.timesteps for entry in group if entry.settled and entry.failure is None)
            delivery.withdraw(group[0], exc if isinstance(exc, DncError) else Cancelled("the step was given up"))
            if applied and isinstance(exc, DncError):
                raise exc.with_note(
                    f"{applied} timesteps of this step were applied before: make the same one again, or `resync()`"
                ) from exc.__cause__
            raise
        return [entry.take() for entry in group]

    async def outputs(self, group: list[Entry]) -> Array:
        """The outputs of all pieces as one array."""
        return joined([result.outputs for result in await self.results(group)])

    async def reset(self, scope: Scope = "experience") -> None:
        """Zeroes the memory (`experience`; controller state and read vectors stay), or makes all as new (`all`)."""
        if not isinstance(scope, str) or scope not in _SCOPES:
            raise BadRequest(f"scope is {scope!r}, expected 'experience' or 'all'")
        async with self._turn:
            delivery = self._opened
            delivery.check()
            ledger = delivery.ledger
            reset = pb.Reset(
                session_id=self.id,
                incarnation=self.incarnation,
                position=ledger.position,
                experience=ledger.experience,
                scope=_SCOPES[scope],
                writer_id=self.writer_id,
            )
            group = [ledger.enter(pb.StreamRequest(reset=reset), 0, resets=True)]
            delivery.push()
            await self.results(group)

    # Looks, copies, and the end.

    async def info(self) -> SessionInfo:
        """The session as the server describes it."""
        await self._present()
        response = await self._unary("GetSession", pb.GetSessionRequest(session_id=self.id))
        return SessionInfo.from_wire(response.session)

    async def resync(self) -> SessionInfo:
        """Goes on from where the server stands, whatever this client knew: after StepConflict, ReplyGone or
        SessionReplaced, where somebody else has used the session, or a step was given up for another one."""
        response = await self._unary("GetSession", pb.GetSessionRequest(session_id=self.id))
        info = SessionInfo.from_wire(response.session)
        await self.take_up(info)
        return info

    async def dump(
        self, names: Sequence[str] = (), position: int | None = None, *, flat: bool = False
    ) -> dict[str, Array]:
        """The fields of the session's state by name, in their own shapes, now or at an earlier position.

        Where a model has several memories or layers, the first axis counts them. With `flat` it always does, and the
        second holds the rest, as in the `dnc` package's debug table. Of a DNC, the name `interface` gives what the
        timestep that led there asked of memory: gates, read modes and strengths by name, or nothing where all is new.
        """
        dump = pb.Dump(session_id=self.id, names=checked_names(names), position=checked_position(position))
        arrays = assembled(await self._dump_parts(dump))
        if flat:
            return {name: array.reshape(len(array), -1) for name, array in arrays.items()}
        return {name: array[0] if len(array) == 1 else array for name, array in arrays.items()}

    async def look(
        self, names: Sequence[str] = (), position: int | None = None, max_cells: int = DEFAULT_MAX_CELLS
    ) -> MemoryLook:
        """As `dump`, but the first axis always counts parts, and larger arrays than `max_cells` are thinned."""
        dump = pb.Dump(
            session_id=self.id, names=checked_names(names), position=checked_position(position),
            max_cells=checked_number("max_cells", max_cells, 1, UINT32),
        )  # fmt: skip
        parts = await self._dump_parts(dump)
        full_shapes = {part.name: tuple(part.full_shape) for part in parts if part.name}
        return MemoryLook(parts[0].position, parts[0].experience, assembled(parts), full_shapes)

    async def _dump_parts(self, dump: pb.Dump) -> list[pb.DumpPart]:
        await self._present()
        request = pb.DumpMemoryRequest(dump=dump)
        return [response.part for response in await self._collect("DumpMemory", request)]

    async def watch(
        self,
        names: Sequence[str] = (),
        max_frames_per_second: float = 30.0,
        max_cells: int = DEFAULT_MAX_CELLS,
    ) -> AsyncGenerator[MemoryFrame, None]:
        """The session's memory while it works; frames that come faster than they are taken are skipped.

        After a lost connection it goes on with the present. Raises Unavailable if none is had again in time,
        SessionNotFound (and the like) when the session ends.
        """
        request = pb.WatchMemoryRequest(
            session_id=self.id,
            names=checked_names(names),
            max_frames_per_second=checked_rate("max_frames_per_second", max_frames_per_second),
            max_cells=checked_number("max_cells", max_cells, 1, UINT32),
        )
        async with aclosing(self.calls.endless("WatchMemory", request, self._route, self.id)) as frames:
            async for frame in frames:
                yield MemoryFrame.from_wire(frame)

    async def replay(
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
        await self._present()
        request = pb.ReplaySessionRequest(
            session_id=self.id,
            after=checked_number("after", after, 0, UINT64),
            until=checked_position(until),
            names=checked_names(names),
            every=checked_number("every", every, 1, UINT32),
            max_cells=checked_number("max_cells", max_cells, 1, UINT32),
        )
        return [PastTimestep.from_wire(timestep) for timestep in await self._collect("ReplaySession", request)]

    async def fork(self, id: str | None = None, position: int | None = None) -> "AsyncSession":
        """An independent copy under another id, now or at an earlier position, opened."""
        fork_id = new_session_id() if id is None else checked_id(id)
        position = checked_position(position)
        await self._present()
        request = pb.ForkSessionRequest(
            session_id=self.id,
            fork_session_id=fork_id,
            incarnation=self.incarnation,
            position=self._opened.ledger.position if position is None else position,
        )
        response = await self._unary("ForkSession", request)
        fork = AsyncSession(self.calls, self._open_stream, self._handles, fork_id)
        fork.created = response.created
        await fork.take_up(SessionInfo.from_wire(response.session))
        return fork

    async def migrate(self, version: str | None = None) -> bool:
        """Goes on with another version of its model, by default with that of new sessions; False if it did already.

        The state stays as it is, and earlier positions can't be had any more. Raises ModelMismatch where the versions
        have other inputs, outputs or fields of a state.
        """
        await self._present()
        request = pb.MigrateSessionRequest(
            session_id=self.id, incarnation=self.incarnation, version=checked_version(version)
        )
        response = await self._unary("MigrateSession", request)
        self._model = await self.calls.model(response.session.model, response.session.model_version)
        return bool(response.changed)

    async def export(self) -> bytes:
        """The session as a `safetensors` blob that `import_session` takes up elsewhere."""
        await self._present()
        parts = await self._collect("ExportSession", pb.ExportSessionRequest(session_id=self.id))
        blob = b"".join(part.data for part in parts)
        if not parts or len(blob) != parts[0].total_bytes:
            raise Internal(f"the export of session {self.id!r} came in {len(blob)} bytes, not as many as announced")
        return blob

    async def delete(self) -> bool:
        """Ends the session on the server; False if it had ended already."""
        await self._quiet()
        request = pb.DeleteSessionRequest(session_id=self.id, incarnation=self.incarnation)
        response = await self._unary("DeleteSession", request)
        await self.close()
        return bool(response.deleted)

    @property
    def _opened(self) -> Delivery:
        if self._delivery is None:
            raise SessionError(
                f"session {self.id!r} is not open: use `async with client.session(…)`, or await it", reason="NOT_OPEN"
            )
        return self._delivery

    async def _quiet(self) -> None:
        """Returns when everything that was sent has been answered."""
        last = self._opened.ledger.last
        if last is not None:
            await self._opened.settled(last)

    async def _present(self) -> None:
        """Returns when the server stands where this client does, also if it has just lost what wasn't on its disk."""
        await self._quiet()
        ledger = self._opened.ledger
        if ledger.last is not None or ledger.is_whole:
            await self._opened.restore()

    async def _unary(self, method: str, request: Any) -> Any:
        return await self.calls.unary(method, request, self._route, self.id)

    async def _collect(self, method: str, request: Any) -> list[Any]:
        return await self.calls.collect(method, request, self._route, self.id)


def new_session_id() -> str:
    """A random id."""
    return secrets.token_hex(8)


def chunks_of(chunks: Any) -> Iterator[Any]:
    """What a stream is fed with. Raises BadRequest."""
    try:
        return iter(chunks)
    except TypeError:
        raise BadRequest(f"chunks is of type {type(chunks).__name__}, expected an iterable of inputs [T, I]") from None


def _leave(loop: asyncio.AbstractEventLoop, delivery: Delivery) -> None:
    """Closes a dropped handle's delivery, on its own loop, wherever the handle was collected."""
    with suppress(RuntimeError):  # the loop is closed, and with it all that it ran
        loop.call_soon_threadsafe(delivery.drop)


def _traceparent() -> str:
    """The caller's trace, as W3C Trace Context writes it; empty if there is none, or it is not sampled."""
    if get_current_span is None:
        return ""
    context = get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
