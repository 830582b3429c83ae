"""Sessions whose state is in the store, loaded again; and views of what they were at earlier positions.

The store is read in threads. What was recorded since the snapshot is replayed by the engine like any chunk, in batches
with others.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np

from dnc_serve.handler.arrays import Array
from dnc_serve.handler.engine.journal import Journal
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.observer import Observer
from dnc_serve.handler.engine.replies import Reply
from dnc_serve.handler.engine.requests import Chunk, Done, Inspect, Replay, Request, Reset, StateView
from dnc_serve.handler.engine.session import Session, Status
from dnc_serve.handler.engine.state_cache import StateCache
from dnc_serve.handler.errors import ServeError, internal_error
from dnc_serve.handler.store.history import Recovered, earliest_position, find_reply, find_writer, latest, recover
from dnc_serve.handler.store.records import MOVED, Operation

logger = logging.getLogger(__name__)

# Records are replayed in chunks of about so many timesteps, as long as no reset stands between them.
REPLAY_TIMESTEPS = 512
NO_TIMESTEPS: Array = np.zeros((0, 0), np.float32)
# A store of one file is read by one at a time anyway; another one is on the network.
THREADS = 2
# Read by one thread, one after the other: waking it, and the loop again, costs more than reading a state.
SESSIONS_A_READ = 8

Result = TypeVar("Result")


class Recovery:
    """Reads the store for the engine, which does what the callbacks say.

    room()                      how many more states may be replayed
    submit(session, request)    queues a request
    answer, reply_again         tell whoever asked
    fail_all(session, error)    refuses all that waits for a session
    discard(session, error)     ends it here, without a trace
    on_free(session)            lets its requests begin
    """

    def __init__(
        self,
        journal: Journal,
        cache: StateCache,
        runner: ModelRunner,
        observer: Observer,
        *,
        room: Callable[[], int],
        submit: Callable[[Session, Request], None],
        answer: Callable[[Session, Request, Any, ServeError | None], None],
        reply_again: Callable[[Session, Chunk, Reply], None],
        fail_all: Callable[[Session, ServeError], None],
        discard: Callable[[Session, ServeError], None],
        on_free: Callable[[Session], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._store = journal.store
        self._volatile = journal.volatile
        self._cache = cache
        self._runner = runner
        self._observer = observer
        self._room = room
        self._submit = submit
        self._answer = answer
        self._reply_again = reply_again
        self._fail_all = fail_all
        self._discard = discard
        self._on_free = on_free
        self._threads = ThreadPoolExecutor(THREADS, "dnc-store-reader")
        self.wanted: deque[Session] = deque()
        self._views: dict[Session, Callable[[], Recovered]] = {}  # of sessions that are replayed to earlier positions
        self._read_pending = False
        self._reading = 0
        self._loaded_not_begun: set[Session] = set()

    def close(self) -> None:
        """Returns when the store is read no more."""
        self._threads.shutdown()

    # Loading.

    def load(self, session: Session) -> None:
        """Loads the state of a session from the store; its queue waits."""
        session.become(Status.WAITING)
        self.wanted.append(session)
        self.on_capacity()

    def on_capacity(self) -> None:
        """There may be room for more states. What is wanted in the same turn of the loop is read together."""
        if self.wanted and not self._read_pending:
            self._read_pending = True
            self._loop.call_soon(self._read_some)

    def _read_some(self) -> None:
        """Reads as many states as can be replayed: more would only take memory from others."""
        self._read_pending = False
        self._loaded_not_begun = {one for one in self._loaded_not_begun if one.status is Status.QUEUED}
        room = self._room() - self._reading - len(self._loaded_not_begun)
        some = [self.wanted.popleft() for _ in range(min(room, len(self.wanted)))]
        self._reading += len(some)
        for start in range(0, len(some), SESSIONS_A_READ):
            part = some[start : start + SESSIONS_A_READ]
            reads = [self._views.get(session) or self._reading_of(session) for session in part]
            future = self._loop.run_in_executor(self._threads, _results_of, reads)
            future.add_done_callback(partial(self._have_read, part))

    def _have_read(
        self, sessions: list[Session], future: "asyncio.Future[list[tuple[Any, ServeError | None]]]"
    ) -> None:
        for session, (recovered, error) in zip(sessions, future.result(), strict=True):
            self._reading -= 1
            if session.ended:
                continue
            try:
                if error is not None:
                    raise error
                self._install(session, recovered)
            except ServeError as refused:
                if refused.reason == "CORRUPT_STATE":
                    session.corrupt = refused.message
                self._fail_all(session, refused)
            except Exception:  # a mistake: it may cost this session its requests, and nobody else's
                logger.exception("the state of session %r could not be installed", session.session_id)
                self._cache.forget(session)
                session.replays = 0
                session.queue = deque(one for one in session.queue if not isinstance(one, Replay))
                self._fail_all(session, internal_error())
            else:
                self._loaded_not_begun.add(session)
            self._on_free(session)
        self.on_capacity()

    def _reading_of(
        self, session: Session, position: int | None = None, since: int | None = None
    ) -> Callable[[], Recovered]:
        """To be called in a thread: the session's state as of now, or at an earlier position; or a state not newer than
        `since`, and what leads from there to the position."""
        last = session.ordinal, session.position
        return partial(
            recover, self._store, session.session_id, session.incarnation, last, self._runner.layout.size, position,
            since,
        )  # fmt: skip

    def _install(self, session: Session, recovered: Recovered) -> None:
        """Gives the session a state, and puts before all that waits for it what is to be applied to that."""
        replays = self._replays(session, recovered.operations)
        session.replays = len(replays)
        session.queue.extendleft(reversed(replays))
        if recovered.fallbacks:
            self._observer.fell_back(recovered.fallbacks)
        session.snapshot_ordinal = recovered.snapshot_ordinal
        session.fingerprint = recovered.fingerprint or self._runner.fingerprint
        if session in self._views:
            session.snapshot_ordinal = session.ordinal  # never to be stored
        self._cache.admit(session, recovered.state)
        if replays:
            session.timesteps_since_snapshot = sum(len(replay.inputs) for replay in replays)
        fingerprints = [replay.fingerprint for replay in replays if replay.fingerprint]
        if fingerprints:
            session.fingerprint = self._runner.of_fingerprint(fingerprints[-1]).fingerprint
        if any(self._runner.of_fingerprint(one).fingerprint != one for one in fingerprints):
            session.replayed_elsewhere = True
            self._observer.replayed_elsewhere(session)

    def _replays(self, session: Session, operations: Sequence[Operation]) -> list[Replay]:
        """The operations since the snapshot, consecutive chunks joined that the same code computed.

        Raises CORRUPT_STATE for operations of a model of other sizes.
        """

        def done(result: object, error: ServeError | None) -> None:
            session.replays -= 1
            if error is not None:  # the other replays fail with it, and tell it here again
                self._fail_all(session, error)

        groups: list[list[Operation]] = []
        timesteps = 0
        for operation in operations:
            self._check_sizes(session, operation)
            joins = (
                groups
                and not operation.reset
                and timesteps < REPLAY_TIMESTEPS
                and (timesteps == 0 or operation.fingerprint == groups[-1][-1].fingerprint)
            )
            if joins:
                groups[-1].append(operation)
            else:
                groups.append([operation])
                timesteps = 0
            timesteps += len(operation.inputs)
        return [self._replay_of(group, done) for group in groups]

    def _replay_of(self, group: Sequence[Operation], done: Done) -> Replay:
        """A reset alone, which has no timesteps, may stand before the others."""
        steps = [operation for operation in group if len(operation.inputs)]
        if not steps:
            return Replay(NO_TIMESTEPS, NO_TIMESTEPS, group[0].reset, "", done)
        return Replay(*self._arrays_of(steps), group[0].reset, steps[0].fingerprint, done)

    def _arrays_of(self, operations: Sequence[Operation]) -> tuple[Array, Array]:
        """Inputs and outputs [T, *shape], which a record holds as bytes."""
        inputs = np.concatenate([operation.inputs for operation in operations])
        outputs = np.concatenate([operation.outputs for operation in operations])
        return self._runner.inputs.of_bytes(inputs), self._runner.outputs.of_bytes(outputs)

    def _reply_of(self, operation: Operation) -> Reply:
        arrays = self._arrays_of([operation]) if len(operation.inputs) else (NO_TIMESTEPS, NO_TIMESTEPS)
        inputs, outputs = arrays
        return Reply(operation.start, inputs, bool(operation.reset), operation.experience, outputs, operation.writer_id)

    @property
    def _sizes(self) -> tuple[int, int]:
        """Bytes that the model takes and gives at each timestep."""
        return self._runner.inputs.nbytes, self._runner.outputs.nbytes

    def _check_sizes(self, session: Session, operation: Operation) -> None:
        got, expected = operation.sizes, self._sizes
        if len(operation.inputs) and got != expected:
            raise ServeError(
                "CORRUPT_STATE",
                f"session {session.session_id!r} can't be recovered: record {operation.ordinal} has {got[0]} bytes of "
                f"inputs and {got[1]} of outputs a timestep; the model {expected[0]} and {expected[1]}",
            )

    # What was answered before.

    def find_reply(self, session: Session, chunk: Chunk) -> None:
        """Looks up in the store what an earlier chunk was answered with; the queue waits."""
        position = chunk.position
        assert position is not None

        def read() -> Reply | None:
            if self._volatile:
                raise ServeError(
                    "REPLY_GONE",
                    f"the reply of session {session.session_id!r} at position {position} is no longer kept",
                )
            found = find_reply(self._store, session.session_id, session.incarnation, session.ordinal, position)
            return None if found is None else self._reply_of(found)

        def then(reply: Reply | None) -> None:
            self._reply_again(session, chunk, session.check_reply(chunk, reply))

        self._look_up(session, chunk, read, then)

    def recall_replies(self, session: Session, chunk: Chunk) -> None:
        """Reads the latest replies from the store, for the chunk that stands first to be judged by; the queue waits."""

        def read() -> list[Reply]:
            kept, last = session.replies.max_replies, session.ordinal
            found = latest(self._store, session.session_id, session.incarnation, last, kept)
            # Before a reset of all it may have been another model's.
            found = [one for one in found if one.reset != MOVED]
            return [self._reply_of(one) for one in found if not len(one.inputs) or one.sizes == self._sizes]

        def then(replies: list[Reply]) -> None:
            session.replies.recall(replies)
            session.queue.appendleft(chunk)  # it stands first again

        self._look_up(session, chunk, read, then)

    def find_reset(self, session: Session, reset: Reset) -> None:
        """Looks up in the store who ended an experience; the queue waits."""
        experience = reset.experience
        assert experience is not None

        def read() -> int | None:
            if self._volatile:
                return None
            return find_writer(self._store, session.session_id, session.incarnation, session.ordinal, experience)

        def then(writer_id: int | None) -> None:
            session.check_ended_by(reset, writer_id)
            self._answer(session, reset, False, None)

        self._look_up(session, reset, read, then)

    def _look_up(
        self, session: Session, request: Request, read: Callable[[], Result], then: Callable[[Result], None]
    ) -> None:
        """Reads the store for the request that stands first; `then` answers it with what was found, or raises."""
        session.become(Status.WAITING)

        def found(future: "asyncio.Future[tuple[Any, ServeError | None]]") -> None:
            result, error = future.result()
            if session.queue and session.queue[0] is request:
                session.queue.popleft()
                try:
                    if error is not None:
                        raise error
                    then(result)
                except ServeError as refusal:
                    self._answer(session, request, None, refusal)
                except Exception:
                    logger.exception("what was looked up for session %r could not be told", session.session_id)
                    self._answer(session, request, None, internal_error())
            self._on_free(session)

        self._loop.run_in_executor(self._threads, _result_of, read).add_done_callback(found)

    # Back in time.

    async def earliest_position(self, session_id: str, incarnation: int) -> int | None:
        """The earliest position that can be viewed; None if there is none but the present one."""
        read = partial(earliest_position, self._store, session_id, incarnation)
        return await self._loop.run_in_executor(self._threads, read)

    async def view_at(self, session: Session, past: Session, position: int) -> StateView:
        """The session as it was when it last stood at an earlier position. `past` is a new session with its identity,
        known to nobody, that is replayed up to there.

        Raises POSITION_GONE, STEP_GAP for one that lies ahead, CORRUPT_STATE.
        """
        self._check_kept(session, position)
        viewed: asyncio.Future[StateView] = self._loop.create_future()
        past.created_at = session.created_at
        recovery = self._reading_of(session, position)

        def read() -> Recovered:
            recovered = recovery()
            last = recovered.operations[-1] if recovered.operations else recovered
            past.position, past.experience, past.ordinal = last.position, last.experience, last.ordinal
            return recovered

        self._views[past] = read
        try:
            self._submit(past, Inspect(_settles(viewed)))
            return await viewed
        finally:
            del self._views[past]
            self._discard(past, ServeError("CANCELLED", "nobody waits for the view any more"))

    async def between(self, session: Session, after: int, until: int) -> Recovered:
        """A state of the session at or before position `after`, and all that was applied from there to `until`.

        Raises as `view_at`.
        """
        self._check_kept(session, until)
        recovered, error = await self._loop.run_in_executor(
            self._threads, _result_of, self._reading_of(session, until, after)
        )
        if recovered is None:
            assert error is not None
            raise error
        for operation in recovered.operations:
            self._check_sizes(session, operation)
        return recovered

    def _check_kept(self, session: Session, position: int) -> None:
        if position > session.position:
            raise session.gap(position)
        if self._volatile:
            raise ServeError("POSITION_GONE", "durability is off: no earlier position is kept")


def _settles(future: "asyncio.Future[Any]") -> Done:
    def done(result: Any, error: ServeError | None) -> None:
        if not future.done():
            future.set_exception(error) if error is not None else future.set_result(result)

    return done


def _result_of(read: Callable[[], Result]) -> tuple[Result | None, ServeError | None]:
    try:
        return read(), None
    except ServeError as error:
        return None, error
    except Exception as exc:  # whatever it was, whoever asked is to be answered
        logger.exception("reading the store failed")
        return None, ServeError("INTERNAL", f"reading the store failed: {exc}")


def _results_of(reads: Sequence[Callable[[], Any]]) -> list[tuple[Any, ServeError | None]]:
    return [_result_of(read) for read in reads]
