"""The session engine: requests in, results out, states inside.

One owner of all states, on one event loop. Each session has a queue; what stands first in it is judged, and a chunk
takes this way:

    schedule → execute → write ahead → commit → reply

Until its commit it works on a row of its own, so whatever goes wrong leaves its session as it was.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.batch_scheduler import Batch, BatchScheduler, Run
from dnc_serve.handler.engine.checks import check_finite, check_replay
from dnc_serve.handler.engine.executor import Executor
from dnc_serve.handler.engine.journal import Journal
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.observer import Committed, Observers
from dnc_serve.handler.engine.ownership import Ownership
from dnc_serve.handler.engine.recovery import Owner, Recovery
from dnc_serve.handler.engine.replies import Replies, Reply
from dnc_serve.handler.engine.requests import Applied, Chunk, Delete, Inspect, Replay, Request, Reset, StateView
from dnc_serve.handler.engine.session import Session, Status, Tier, Verdict
from dnc_serve.handler.engine.session_table import SessionTable, Tombstone
from dnc_serve.handler.engine.snapshots import Snapshots
from dnc_serve.handler.engine.state_cache import StateCache, StateRows
from dnc_serve.handler.engine.write_ahead import WriteAhead
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.contract import Head

logger = logging.getLogger(__name__)

# Chunks under way hold rows that others could use: no more than some batches' worth.
MAX_RUNS_IN_BATCHES = 8
# A chunk that takes longer than this by itself is stepped in a thread: waking that costs a tenth of it.
LONG_S = 0.002
# How long a batch takes: in the loop, where nobody else is served meanwhile, and in a thread.
SLICE_S = 0.004
THREAD_SLICE_S = 0.008


class Engine:
    """Applies requests to sessions. All methods are called on the loop that it was made on."""

    def __init__(
        self, runner: ModelRunner, journal: Journal, table: SessionTable, config: ServeConfig, observers: Observers,
        *, digest: str,
    ) -> None:  # fmt: skip
        self.loop = asyncio.get_running_loop()
        self.runner = runner
        self.layout = runner.layout
        self.journal = journal
        self.table = table
        self.config = config
        self.observers = observers
        self.digest = digest
        self.row_bytes = runner.layout.size * 4
        if self.row_bytes > config.host_bytes:
            raise ServeError(
                "STATE_TOO_LARGE",
                f"a session's state takes {self.row_bytes} bytes, more than the {config.host_bytes} bytes that "
                f"host_bytes allows for all of them",
            )
        self.queued = 0  # requests in all queues
        self.runs = 0  # chunks under way
        self.max_runs = min(config.slots, MAX_RUNS_IN_BATCHES * runner.max_rows)
        rows = StateRows(config.slots + self.max_runs, runner.layout.size, runner.device)
        self.cache = StateCache(
            rows, slots=config.slots, host_bytes=config.host_bytes, row_bytes=self.row_bytes,
            store_states=lambda sessions, then: self.snapshots.store_states(sessions, then), on_free=self.on_free,
            later=self.loop.call_soon, observer=observers, keeps_replies=journal.volatile,
        )  # fmt: skip
        self.ownership = Ownership(
            journal.store, table, config.lease_s, self.register, self.bury, self.discard
        )  # fmt: skip
        self.write_ahead = WriteAhead(
            journal, table, self.cache, self.ownership.lose, digest=digest, fingerprint=runner.fingerprint,
            experience_offset=runner.layout.experience_offset, state_size=runner.layout.size,
        )  # fmt: skip
        self.snapshots = Snapshots(journal, self.cache, config, observers, self.ownership.lose)
        observers.add(self.snapshots)
        owner = Owner(
            lambda: self.max_runs - self.runs, self.on_free, self.fail_all, self.discard, self.submit, self.answer,
            self.reply_again, runner.of_fingerprint,
        )  # fmt: skip
        self.recovery = Recovery(
            journal.store, self.cache, owner, observers, state_size=runner.layout.size,
            sizes=(runner.input_size, runner.output_size), fingerprint=runner.fingerprint, volatile=journal.volatile,
        )  # fmt: skip
        self.executor = Executor(rows, runner.layout, config.step_threads)
        self._rows = rows
        self._turns: deque[Session] = deque()  # QUEUED: what stands first in their queues is to begin
        self._short = BatchScheduler(SLICE_S)  # stepped in the loop
        self._long = BatchScheduler(THREAD_SLICE_S)  # in threads
        self._step_pending = False
        self._beginning: dict[Session, asyncio.Future[ServeError | None]] = {}

    def close(self) -> None:
        """Ends the engine's threads; what they were at comes to its end first."""
        self.executor.close()
        self.recovery.close()

    # Requests come in.

    def submit(self, session: Session, request: Request) -> None:
        """Queues a request; raises QUEUE_FULL when the session's queue or the server's is full."""
        config = self.config
        if session.ended:  # while the caller was on its way here
            self.table.get(session.session_id, session.owner)
            raise ServeError("NOT_READY", "the session has just moved or begun anew", retry_after_s=0.05)
        if len(session.queue) >= config.max_queued_chunks or self.queued >= config.max_queued_chunks_total:
            whose = f"session {session.session_id!r}" if self.queued < config.max_queued_chunks_total else "the server"
            raise ServeError(
                "QUEUE_FULL",
                f"the queue of {whose} is full",
                retry_after_s=0.05,
                queued=len(session.queue),
                limit=config.max_queued_chunks,
            )
        self.queued += 1
        session.queue.append(request)
        if session.status is Status.IDLE:
            self._enqueue(session)

    def _enqueue(self, session: Session) -> None:
        session.become(Status.QUEUED)
        self._turns.append(session)
        self._wake()

    def _wake(self) -> None:
        if not self._step_pending:
            self._step_pending = True
            self.loop.call_soon(self.step)

    # The way of a chunk.

    def step(self) -> None:
        """Schedules and steps what has come in since the last step."""
        self._step_pending = False
        self._begin_queued()
        while self._long and self.executor.free_threads:
            rows = -(-len(self._long) // self.executor.free_threads)
            if (batch := self._long.next_batch(rows)) is not None:
                self.executor.step_in_thread(batch, self._stepped)
        if (batch := self._short.next_batch()) is not None:
            self.executor.step(batch)
            self._stepped(batch)

    def _stepped(self, batch: Batch) -> None:
        """Records what is through, and schedules what has ticks left."""
        if batch.failed:
            error = ServeError("INTERNAL", "the model could not be stepped; nothing was applied")
            for run in batch.runs:
                self._drop(run, error)
            return
        self.observers.stepped(len(batch.runs), batch.tick_s)
        through = []
        for run in batch.runs:
            if run.rest:
                self._schedule(run)
            elif self._passes(run):
                through.append(run)
        if through:
            self.write_ahead.record_chunks(through, self._committed, self._drop)
        if self._short or self._long or self._turns:
            self._wake()

    def _committed(self, group: list[Committed]) -> None:
        """Replies, and lets the sessions go on."""
        for session, chunk, applied in group:
            self.answer(session, chunk, applied, None)
            self._release(session)
        self.observers.committed(group)

    def _schedule(self, run: Run) -> None:
        takes_long = isinstance(run.request, Replay) or run.rest * run.runner.seconds(1) > LONG_S
        is_long = takes_long and run.runner.lets_others_run
        (self._long if is_long else self._short).add(run)

    def _passes(self, run: Run) -> bool:
        """Whether a finished run is to be recorded; a replay is through, and whatever is wrong is refused."""
        try:
            if isinstance(run.request, Replay):
                check_replay(run, run.request)
                self._replayed(run)
                return False
            run.request.check_wanted()
            check_finite(run, self._rows, self.layout)
            if run.request.debug:  # before the record: it may fail
                run.debug = self.executor.debug(run, self.runner)
        except ServeError as error:
            self._drop(run, error)
            return False
        except RuntimeError:
            logger.exception("debug arrays could not be computed")
            self._drop(run, ServeError("INTERNAL", "the debug arrays could not be computed; nothing was applied"))
            return False
        run.request.stepped_at = time.perf_counter()
        return True

    def _replayed(self, run: Run) -> None:
        self.cache.swap(run.session, run.row)
        self.observers.recovered(len(run.request.inputs))
        self.answer(run.session, run.request, None, None)
        self._release(run.session)

    def _drop(self, run: Run, error: ServeError) -> None:
        """The run comes to nothing, and its session stands where it did."""
        self._rows.give(run.row)
        self.answer(run.session, run.request, None, error)
        if isinstance(run.request, Replay):  # the state lies before where the session stands: it is loaded anew
            self.cache.forget(run.session)
        self._release(run.session)

    def _release(self, session: Session) -> None:
        """A run of the session is over; its row was given back, or swapped in."""
        self.runs -= 1
        if session.status is Status.ENDING:
            self.cache.forget(session)
            session.become(Status.ENDED)
        self.on_free(session)

    def on_free(self, session: Session) -> None:
        """Nothing of the session is under way: its requests may begin, and those of others that waited for room."""
        if not session.ended:
            if session.queue:
                self._enqueue(session)
            else:
                session.become(Status.IDLE)
        if self._turns:
            self._wake()
        self.recovery.on_capacity()
        if self.ownership.shared and session.status is Status.IDLE and session.tier is Tier.STORE:
            self.ownership.give_up([session])

    # What stands first in a queue.

    def _begin_queued(self) -> None:
        """Begins what stands first in the queues; what finds no room waits for the next step."""
        for _ in range(len(self._turns)):
            session = self._turns.popleft()
            while session.status is Status.QUEUED:
                if not session.queue:
                    session.become(Status.IDLE)
                elif self.runs >= self.max_runs or not self._begin(session, session.queue[0]):
                    self._turns.append(session)
                    break

    def _begin(self, session: Session, request: Request) -> bool:
        """Starts, answers or refuses the request that stands first; False if there is no room for it now."""
        try:
            self.ownership.check(session)
            if not isinstance(request, Replay):
                request.check_wanted()
                if request.error_state is not None and request.error_state.failed:
                    request.error_state.check(session, request)
            begins_anew = isinstance(request, Delete) or (isinstance(request, Reset) and request.scope == "all")
            if session.corrupt and not begins_anew:
                raise ServeError("CORRUPT_STATE", session.corrupt)
            match request:
                case Chunk():
                    return self._begin_chunk(session, request)
                case Replay():
                    return self._begin_replay(session, request)
                case Reset():
                    self._begin_reset(session, request)
                case Inspect():
                    self._inspect(session, request)
                case Delete():
                    session.check_incarnation(request.incarnation)
                    self._end(session, request)
                case _:
                    raise AssertionError(request)
        except ServeError as error:
            self._refuse_first(session, request, error)
        except Exception:  # a mistake: it may cost this request, and nobody else's
            logger.exception("a request to session %r could not be begun", session.session_id)
            self._refuse_first(
                session, request, ServeError("INTERNAL", "the server made a mistake; nothing was applied")
            )
        return True

    def _refuse_first(self, session: Session, request: Request, error: ServeError) -> None:
        if session.queue and session.queue[0] is request:
            session.queue.popleft()
            self.answer(session, request, None, error)

    def _begin_chunk(self, session: Session, chunk: Chunk) -> bool:
        self._check_model(session)
        verdict = session.judge_chunk(chunk)
        if verdict is Verdict.APPLY:
            return self._begin_run(session, chunk)
        if verdict is Verdict.ASK_STORE:
            self.recovery.find_reply(session, chunk)
        else:
            assert isinstance(verdict, Reply)
            session.queue.popleft()
            self.reply_again(session, chunk, verdict)
        return True

    def _begin_replay(self, session: Session, replay: Replay) -> bool:
        if len(replay.inputs):
            return self._begin_run(session, replay)
        state = self.cache.read(session)
        self.executor.reset(state, replay.reset)
        self.cache.write(session, state)
        session.queue.popleft()
        self.answer(session, replay, None, None)
        return True

    def _begin_run(self, session: Session, request: Chunk | Replay) -> bool:
        if session.row is None:
            if session.host_state is None:
                self.recovery.load(session)
                return True
            if not self.cache.promote(session):
                return False
        session.queue.popleft()
        session.become(Status.RUNNING)
        self.runs += 1
        runner = self.runner
        if isinstance(request, Replay):
            runner = runner.of_fingerprint(request.fingerprint)
        else:
            request.started_at = time.perf_counter()
        self._schedule(Run(session, request, self._rows.take(), runner, len(request.inputs)))
        return True

    def _begin_reset(self, session: Session, reset: Reset) -> None:
        verdict = session.judge_reset(reset)
        if verdict is Verdict.ASK_STORE:
            self.recovery.find_reset(session, reset)
            return
        if verdict is Verdict.DUPLICATE:
            session.queue.popleft()
            self.answer(session, reset, False, None)
            return
        if reset.scope == "experience":
            self._check_model(session)
            if session.tier is Tier.STORE:
                self.recovery.load(session)
                return

        def written(error: ServeError | None) -> None:
            self.answer(session, reset, None if error else True, error)
            if error is None:
                self.observers.committed([Committed(session, reset, None)])
            self.on_free(session)

        session.queue.popleft()
        session.become(Status.WAITING)
        self.write_ahead.reset(session, reset, written)

    def _inspect(self, session: Session, inspect: Inspect) -> None:
        state = None
        if inspect.with_state:
            self._check_model(session)
            if session.tier is Tier.STORE:
                self.recovery.load(session)
                return
            state = self.cache.read(session)
        session.queue.popleft()
        self.answer(session, inspect, StateView(session.head(), session.fingerprint, state), None)

    def _check_model(self, session: Session) -> None:
        if session.digest != self.digest:
            raise ServeError(
                "MODEL_MISMATCH",
                f"session {session.session_id!r} belongs to model {session.digest[:12]}, this server runs "
                f"{self.digest[:12]}: export it, reset it with scope ALL, or delete it",
                session_digest=session.digest,
                model_digest=self.digest,
            )

    # Answers.

    def answer(self, session: Session, request: Request, result: Any, error: ServeError | None) -> None:
        """Tells whoever asked."""
        if not isinstance(request, Replay):
            self.queued -= 1
        try:
            request.done(result, error)
        except Exception:  # a mistake in what follows from one answer must not keep others from theirs
            logger.exception("an answer of session %r could not be given", session.session_id)

    def reply_again(self, session: Session, chunk: Chunk, reply: Reply) -> None:
        """Answers a chunk that was applied before with what it was answered then."""
        applied = Applied(
            session.incarnation, reply.start + len(reply.inputs), session.durable_position, reply.experience,
            reply.outputs, replayed=True, debug=reply.debug,
        )  # fmt: skip
        self.answer(session, chunk, applied, None)
        self.observers.replied_again(session, chunk, applied)

    def fail_all(self, session: Session, error: ServeError) -> None:
        """Refuses everything that waits for the session."""
        while session.queue:
            self.answer(session, session.queue.popleft(), None, error)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is queued or under way."""
        return not self.queued and not self.runs

    # Sessions come and go.

    def new_session(
        self, session_id: str, owner: str, incarnation: int, *, position: int = 0, experience: int = 0
    ) -> Session:
        """A session that is not registered yet."""
        replies = Replies(self.config.reply_window_chunks, self.config.reply_window_bytes)
        session = Session(session_id, incarnation, self.digest, owner, time.time(), replies)
        session.position, session.experience = position, experience
        session.fingerprint = self.runner.fingerprint
        return session

    def begin(self, session: Session, state: Float32 | None, then: Callable[[ServeError | None], None]) -> None:
        """Registers a new session with a state [S] (None: zeros) and makes it as durable as promised."""
        self.table.check_room()
        tombstone = self.table.tombstone(session.session_id)
        self.table.add(session)
        session.become(Status.WAITING)
        begun = self._beginning[session] = self.loop.create_future()

        def written(error: ServeError | None) -> None:
            if session.ended:  # its lease was lost meanwhile
                error = error or ServeError("NOT_READY", "another server took the session", retry_after_s=0.05)
            elif error is not None:
                self.table.remove(session)
                if tombstone is not None:  # the store has it still
                    self.table.bury(session.session_id, tombstone)
                self.ownership.ended(session)
                session.become(Status.ENDED)
                self.fail_all(session, error)
            else:
                self.on_free(session)
            del self._beginning[session]
            begun.set_result(error)
            then(error)

        self.write_ahead.begin(session, state, written)

    def has_begun(self, session: Session) -> bool:
        """Whether it is as durable as promised that there is this session."""
        return session not in self._beginning

    async def begun(self, session: Session) -> None:
        """Returns when the session has begun; raises why it has not."""
        beginning = self._beginning.get(session)
        if beginning is not None and (error := await asyncio.shield(beginning)) is not None:
            raise error

    def _end(self, session: Session, request: Delete) -> None:
        session.queue.popleft()
        session.become(Status.WAITING)

        def written(error: ServeError | None) -> None:
            if error is not None:
                self.answer(session, request, None, error)
                self.on_free(session)
                return
            self.ownership.ended(session)
            if not session.ended:
                session.become(Status.ENDED)
            self.answer(session, request, True, None)
            self.fail_all(
                session,
                Tombstone(session.incarnation, session.owner, request.why, time.time()).refusal(session.session_id),
            )
            self.observers.ended(session, request.why)
            self.on_free(session)  # others may have waited for its slot

        self.write_ahead.end(session, request.why, written)

    def discard(self, session: Session, error: ServeError) -> None:
        """The session is not served here any more; its state goes as soon as nothing runs on it."""
        self.fail_all(session, error)
        if session.status is Status.RUNNING:
            session.become(Status.ENDING)
        elif not session.ended:
            session.become(Status.ENDED)
            self.cache.forget(session)

    def register_all(self) -> None:
        """Knows the sessions that an earlier run of this server left in the store."""
        for head in sorted(self.journal.store.heads(), key=lambda head: head.last_used_at):
            if head.ended:
                self.bury(head)
            else:
                self.register(head)

    def register(self, head: Head) -> Session:
        """Knows a session that the store has; its state is loaded when it is needed."""
        session = self.new_session(
            head.session_id, head.owner, head.incarnation, position=head.position, experience=head.experience
        )
        session.digest, session.ordinal = head.digest, head.ordinal
        session.created_at, session.last_used_at = head.created_at, head.last_used_at
        session.durable_position = head.position
        self.table.add(session)
        return session

    def bury(self, head: Head) -> None:
        """Knows how a session that the store has ended."""
        self.table.bury(head.session_id, Tombstone(head.incarnation, head.owner, head.ended, head.ended_at))

    # Views.

    async def view_at(self, session: Session, position: int) -> StateView:
        """The session as it was at an earlier position; see `Recovery.view_at`."""
        past = self.new_session(session.session_id, session.owner, session.incarnation)
        return await self.recovery.view_at(session, past, position)
