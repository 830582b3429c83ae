"""Sessions whose state is in the store, brought back; and looks at what they were.

The store is read in worker threads. What was recorded since the snapshot is replayed by the engine like any chunk, in
the company of others.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.engine.readers import Readers
from dnc_serve.handler.engine.sessions import Reply, Session
from dnc_serve.handler.engine.work import Chunk, Peek, Replay, Seen
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.journal.records import Operation
from dnc_serve.handler.journal.recovery import Recovered, earliest_position, find_reply, recover

if TYPE_CHECKING:
    from dnc_serve.handler.engine.engine import Engine

# Looks at earlier positions at once, as many as a share of host memory has room for: each takes a state, and the
# records that lead to it.
LOOKS_AT_ONCE = 32
LOOKS_SHARE = 1 / 4
# Records are replayed in chunks of about so many timesteps, as long as no reset stands between them.
REPLAY_TIMESTEPS = 512


class Loading:
    """Reads the store for the engine."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._readers = Readers(engine.loop)
        self._wanted: deque[Session] = deque()
        self._read_pending = False
        self._reading = 0
        self._brought: set[Session] = set()  # whose work has not begun
        room = int(engine.config.host_bytes * LOOKS_SHARE) // engine.row_bytes
        self._looks = asyncio.Semaphore(max(1, min(LOOKS_AT_ONCE, room)))
        self._looking = 0

    def close(self) -> None:
        """Returns when the store is read no more."""
        self._readers.close()

    def load(self, session: Session) -> None:
        """Brings the state of a session from the store; its FIFO waits."""
        session.busy = True
        self._wanted.append(session)
        self.go_on()

    def go_on(self) -> None:
        """There may be room for more states. What is wanted in the same turn of the loop is read together."""
        if self._wanted and not self._read_pending:
            self._read_pending = True
            self._engine.loop.call_soon(self._read_some)

    def _read_some(self) -> None:
        """Reads as many states as can be worked on: more would only take memory from others."""
        engine = self._engine
        self._read_pending = False
        self._brought = {session for session in self._brought if session.scheduled}
        room = engine.max_runs - engine.turns.runs - self._reading - len(self._brought)
        some = [self._wanted.popleft() for _ in range(min(room, len(self._wanted)))]
        self._reading += len(some)
        self._readers.ask((self._recovery(session), partial(self._loaded, session)) for session in some)

    def _recovery(self, session: Session, position: int | None = None) -> Callable[[], Recovered]:
        """To be called in a thread: the session's state as of now, or at an earlier position."""
        store, size, last = self._engine.journal.store, self._engine.layout.size, (session.ordinal, session.position)
        return partial(recover, store, session.session_id, session.incarnation, last, size, position)

    def _loaded(self, session: Session, recovered: Recovered | None, error: ServeError | None) -> None:
        engine = self._engine
        self._reading -= 1
        session.busy = False
        if session.ended:
            self.go_on()
            return
        try:
            if error is not None:
                raise error
            assert recovered is not None
            self._install(session, recovered)
        except ServeError as refused:
            if refused.reason == "CORRUPT_STATE":
                session.corrupt = refused.message
            engine.fail_all(session, refused)
            self.go_on()
            return
        self._brought.add(session)
        engine.go_on(session)

    def _install(self, session: Session, recovered: Recovered) -> None:
        """Gives the session a state, and puts before all that waits for it what is to be applied to that."""
        engine = self._engine
        replays = self._replays(session, recovered)
        session.replays = len(replays)
        session.fifo.extendleft(reversed(replays))
        engine.metrics.snapshot_fallbacks.inc(recovered.fallbacks)
        session.snapshot_ordinal = recovered.snapshot_ordinal
        session.fingerprint = recovered.fingerprint or engine.fingerprint
        engine.tiers.admit(session, recovered.state)
        if replays:
            session.timesteps_since_snapshot = sum(len(replay.inputs) for replay in replays)
            marks = [replay.fingerprint for replay in replays if replay.fingerprint]
            if marks:
                session.fingerprint = engine.stepper.tiles_for(marks[-1]).fingerprint
            if any(engine.stepper.tiles_for(mark).fingerprint != mark for mark in marks):
                session.replayed_elsewhere = True
                engine.metrics.replayed_elsewhere.inc()

    def _replays(self, session: Session, recovered: Recovered) -> list[Replay]:
        """The operations since the snapshot, consecutive chunks joined that the same artifact computed.

        Raises CORRUPT_STATE for operations of a model of other sizes.
        """
        replays: list[Replay] = []
        pending: list[tuple[Float32, Float32]] = []
        reset, fingerprint = "", ""
        failed = False
        engine = self._engine

        def done(result: object, error: ServeError | None) -> None:
            nonlocal failed
            session.replays -= 1
            if error is not None and not failed:  # the others fail with it, and tell it here again
                failed = True
                engine.fail_all(session, error)

        def close() -> None:
            nonlocal reset, fingerprint
            if pending or reset:
                inputs = [inputs for inputs, _ in pending] or [np.zeros((0, engine.input_size), np.float32)]
                outputs = [outputs for _, outputs in pending] or [np.zeros((0, engine.output_size), np.float32)]
                replays.append(Replay(np.concatenate(inputs), np.concatenate(outputs), reset, fingerprint, done))
            pending.clear()
            reset, fingerprint = "", ""

        timesteps = 0
        for operation in recovered.operations:
            self._check_sizes(session, operation)
            others = bool(pending) and len(operation.inputs) > 0 and operation.fingerprint != fingerprint
            if operation.reset or others or timesteps >= REPLAY_TIMESTEPS:
                close()
                timesteps = 0
                reset = operation.reset
            if len(operation.inputs):
                pending.append((operation.inputs, operation.outputs))
                timesteps += len(operation.inputs)
                fingerprint = operation.fingerprint
        close()
        return replays

    def _check_sizes(self, session: Session, operation: Operation) -> None:
        expected, got = (self._engine.input_size, self._engine.output_size), operation.sizes
        if len(operation.inputs) and got != expected:
            raise ServeError(
                "CORRUPT_STATE",
                f"session {session.session_id!r} can't be recovered: record {operation.ordinal} has {got[0]} inputs, "
                f"{got[1]} outputs; the model {expected[0]} and {expected[1]}",
            )

    def find_reply(self, session: Session, chunk: Chunk) -> None:
        """Looks up what an earlier chunk was answered with, in the journal; the FIFO waits."""
        session.busy = True
        engine = self._engine
        position = chunk.position
        assert position is not None

        def found(reply: Reply | None, error: ServeError | None) -> None:
            session.busy = False
            if session.fifo and session.fifo[0] is chunk:
                session.fifo.popleft()
                if error is None and (reply is None or not reply.answers(chunk)):
                    error = session.conflict(position, "another chunk was applied")
                if error is not None or reply is None:
                    engine.answer(session, chunk, None, error)
                else:
                    engine.answer_again(session, chunk, reply)
            engine.go_on(session)

        self._readers.ask([(partial(self._reply, session, position), found)])

    def _reply(self, session: Session, position: int) -> Reply | None:
        journal = self._engine.journal
        if journal.volatile:
            raise ServeError(
                "REPLY_GONE", f"the reply of session {session.session_id!r} at position {position} is no longer kept"
            )
        operation = find_reply(journal.store, session.session_id, session.incarnation, session.ordinal, position)
        if operation is None:
            return None
        return Reply(
            operation.start, operation.inputs, operation.reset == "experience", operation.experience, operation.outputs
        )

    async def earliest_position(self, session_id: str, incarnation: int) -> int | None:
        """The earliest position that `look_back` reaches; None if there is none but the present one."""
        store = self._engine.journal.store
        return await self._readers.run(partial(earliest_position, store, session_id, incarnation))

    async def look_back(self, session: Session, position: int) -> Seen:
        """The session as it was when it last stood at an earlier position.

        Raises POSITION_GONE, STEP_GAP for one that lies ahead, CORRUPT_STATE.
        """
        engine = self._engine
        if position > session.position:
            raise session.gap(position)
        if engine.journal.volatile:
            raise ServeError("POSITION_GONE", "durability is off: no earlier position is kept")
        at_most = engine.config.max_queued_chunks_total
        if self._looking >= at_most:
            waiting = f"{self._looking} looks at earlier positions wait already"
            raise ServeError("QUEUE_FULL", waiting, retry_after_s=0.05, limit=at_most)
        self._looking += 1
        try:
            async with self._looks:
                return await self._look_back(session, position)
        finally:
            self._looking -= 1

    async def _look_back(self, session: Session, position: int) -> Seen:
        engine = self._engine
        recovered = await self._readers.run(self._recovery(session, position))
        # A session of its own, known to nobody, is replayed up to there and looked at.
        past = engine.new_session(session.session_id, session.owner, session.incarnation)
        last = recovered.operations[-1] if recovered.operations else recovered
        past.position, past.experience, past.ordinal = last.position, last.experience, last.ordinal
        past.created_at, past.last_used_at = session.created_at, time.time()
        seen: asyncio.Future[Seen] = engine.loop.create_future()

        def done(result: Seen, error: ServeError | None) -> None:
            if not seen.done():
                seen.set_exception(error) if error is not None else seen.set_result(result)

        # The replays come before it, and are not counted against the queue.
        engine.submit(past, Peek(done))
        try:
            self._install(past, recovered)
            past.snapshot_ordinal = past.ordinal  # never to be stored
            return await seen
        finally:
            past.ended = True
            engine.fail_all(past, ServeError("CANCELLED", "nobody looks any more"))
            if not past.running:
                engine.tiers.forget(past)
