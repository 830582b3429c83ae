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
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.batch_scheduler import Batch, BatchScheduler, Run
from dnc_serve.handler.engine.checks import check_finite, check_replay
from dnc_serve.handler.engine.dispatcher import Dispatcher
from dnc_serve.handler.engine.executor import Executor
from dnc_serve.handler.engine.journal import Journal
from dnc_serve.handler.engine.lifecycle import Lifecycle
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.observer import Committed, Observers
from dnc_serve.handler.engine.ownership import Ownership
from dnc_serve.handler.engine.recovery import Recovery
from dnc_serve.handler.engine.replies import Reply
from dnc_serve.handler.engine.requests import Applied, Chunk, Replay, Request, StateView
from dnc_serve.handler.engine.session import GONE, Session, Status, Tier
from dnc_serve.handler.engine.session_table import SessionTable
from dnc_serve.handler.engine.snapshots import Snapshots
from dnc_serve.handler.engine.state_cache import StateCache
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.handler.engine.write_ahead import WriteAhead
from dnc_serve.handler.errors import ServeError, internal_error
from dnc_serve.handler.store.contract import Head
from dnc_serve.handler.store.history import Recovered
from dnc_serve.model.rows import WORD

logger = logging.getLogger(__name__)

# Chunks under way hold rows that others could use: no more than some batches' worth.
MAX_RUNS_IN_BATCHES = 8
# Chunks under way whose debug arrays are asked for: one of which they are computed, and the next.
MAX_DEBUGS = 2
# A chunk that takes longer than this by itself is stepped in a thread: waking that costs a tenth of it.
LONG_S = 0.002
# How long a batch takes: in the loop, where nobody else is served meanwhile, and in a thread.
SLICE_S = 0.004
THREAD_SLICE_S = 0.008
# A sender of many sessions on one stream has its messages read one by one: they are awaited for so long, to be stepped
# together. Stepped each by itself, 64 of them cost half as much again.
BATCH_WINDOW_S = 0.001


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
        self.row_bytes = runner.layout.size * WORD
        if self.row_bytes > config.host_bytes:
            raise ServeError(
                "STATE_TOO_LARGE",
                f"a session's state takes {self.row_bytes} bytes, more than the {config.host_bytes} bytes that "
                f"host_bytes allows for all of them",
            )
        self.queued = 0  # requests in all queues
        self._queued_bytes = 0
        self._timestep_bytes = runner.inputs.nbytes + runner.outputs.nbytes
        self._debugging: set[asyncio.Task[None]] = set()
        self.runs = 0  # chunks under way
        self._debugs: set[Chunk] = set()  # those of them that ask for debug arrays
        self.max_runs = min(config.slots, MAX_RUNS_IN_BATCHES * runner.max_rows)
        self._turns: deque[Session] = deque()  # QUEUED: what stands first in their queues is to be dispatched
        self._short_ticks = LONG_S / runner.seconds(1)
        self._short = BatchScheduler(SLICE_S)  # stepped in the loop
        self._long = BatchScheduler(THREAD_SLICE_S)  # in threads
        self._step_pending = False
        self._window: asyncio.TimerHandle | None = None  # the end of the batching window, while one is open
        self._rows = StateRows(config.slots + self.max_runs, self.layout, runner.device)
        # The parts, each from those that it stands on.
        self.cache = StateCache(
            self._rows,
            slots=config.slots,
            host_bytes=config.host_bytes,
            layout=self.layout,
            store_states=lambda sessions, then: self.snapshots.store_states(sessions, then),
            on_free=self._on_free,
            observer=observers,
            keeps_replies=journal.volatile,
        )
        self.ownership = Ownership(journal.store, table, config.lease_s, self.discard)
        self.snapshots = Snapshots(journal, self.cache, config, observers, self.ownership.lose)
        self.write_ahead = WriteAhead(
            journal,
            table,
            self.cache,
            self.ownership.lose,
            self._read_anew,
            digest=digest,
            fingerprint=runner.fingerprint,
        )
        self.lifecycle = Lifecycle(
            table, self.ownership, self.write_ahead, observers, self._answer, self._fail_all, self._on_free
        )
        self.recovery = Recovery(
            journal,
            self.cache,
            runner,
            observers,
            room=lambda: self.max_runs - self.runs,
            submit=self.submit,
            answer=self._answer,
            reply_again=self._reply_again,
            fail_all=self._fail_all,
            discard=self.discard,
            on_free=self._on_free,
        )
        self._dispatcher = Dispatcher(
            self.ownership,
            self.recovery,
            self.cache,
            self.write_ahead,
            self.lifecycle,
            observers,
            digest=digest,
            start=self._start,
            answer=self._answer,
            reply_again=self._reply_again,
            on_free=self._on_free,
        )
        self._executor = Executor(self._rows, self.layout, config.step_threads)
        observers.add(self.snapshots)

    def close(self) -> None:
        """Ends the engine's threads; what they were at comes to its end first."""
        self._executor.close()
        self.recovery.close()

    # Requests come in.

    def submit(self, session: Session, request: Request, *, more_to_come: bool = False) -> None:
        """Queues a request; raises QUEUE_FULL when the session's queue or the server's is full.

        `more_to_come` says that its sender has more for other sessions, and doesn't wait for the answer.
        """
        config = self.config
        if session.status in GONE:  # while the caller was on its way here
            self.table.get(session.session_id, session.owner)
            raise ServeError("NOT_READY", "the session has just moved or begun anew", retry_after_s=0.05)
        if len(session.queue) >= config.max_queued_chunks or self.queued >= config.max_queued_chunks_total:
            whose = f"session {session.session_id!r}" if self.queued < config.max_queued_chunks_total else "the server"
            raise ServeError(
                "QUEUE_FULL",
                f"the queue of {whose} is full: wait for answers before sending more",
                retry_after_s=0.05,
                queued=len(session.queue),
                limit=config.max_queued_chunks,
            )
        nbytes = self._bytes_of(request)
        if self._queued_bytes and self._queued_bytes + nbytes > config.max_queued_bytes:
            raise ServeError(
                "QUEUE_FULL",
                f"the chunks that wait take {self._queued_bytes} bytes, with this one more than "
                f"{config.max_queued_bytes:d}: wait for answers before sending more",
                retry_after_s=0.05,
                limit=int(config.max_queued_bytes),
            )
        self.queued += 1
        self._queued_bytes += nbytes
        session.queue.append(request)
        if session.status is Status.IDLE:
            session.become(Status.QUEUED)
            self._turns.append(session)
            if not more_to_come:
                self._wake()
            elif self._window is None and not self._step_pending:
                self._window = self.loop.call_later(BATCH_WINDOW_S, self._wake)

    def submit_stateless(self, chunk: Chunk, state: Float32 | None, position: int, experience: int) -> None:
        """Queues a chunk for a state [S] that its caller keeps, None for a new one; its session is known to nobody, and
        ends with it. Raises QUEUE_FULL."""
        session = self.table.new_session("", chunk.owner, 0, position=position, experience=experience)
        tell = chunk.done

        def done(result: Any, error: ServeError | None) -> None:
            self.discard(session, ServeError("CANCELLED", "it had one chunk only"))
            tell(result, error)

        chunk.stateless, chunk.done = True, done
        self.cache.admit(session, state)
        try:
            self.submit(session, chunk)
        except ServeError:
            self.discard(session, ServeError("CANCELLED", "there was no room for it"))
            raise

    def _bytes_of(self, request: Request) -> int:
        """What a chunk and its answer take."""
        if not isinstance(request, Chunk):
            return 0
        return len(request.inputs) * self._timestep_bytes + (self.row_bytes if request.stateless else 0)

    def _wake(self) -> None:
        if not self._step_pending:
            self._step_pending = True
            self.loop.call_soon(self.step)

    # The way of a chunk.

    def step(self) -> None:
        """Schedules and steps what has come in since the last step."""
        self._step_pending = False
        if self._window is not None:
            self._window.cancel()
            self._window = None
        self._dispatch()
        while self._long.runs and self._executor.free_threads:
            rows = -(-len(self._long.runs) // self._executor.free_threads)
            if (batch := self._long.next_batch(rows)) is not None:
                self._executor.step_in_thread(batch, self._stepped)
        if (batch := self._short.next_batch()) is not None:
            self._executor.step(batch)
            self._stepped(batch)

    def _stepped(self, batch: Batch) -> None:
        """Records what is through, and schedules what has ticks left."""
        through = []
        if not batch.failed:
            self.observers.stepped(len(batch.runs), batch.tick_s)
        for run in batch.runs:
            if batch.failed:
                self._drop(run, ServeError("INTERNAL", "the model could not be stepped; nothing was applied"))
            elif run.rest:
                self._schedule(run)
            elif self._passes(run):
                through.append(run)
        if through:
            self.write_ahead.record_chunks(through, self._committed, self._drop)
        if self._short.runs or self._long.runs or self._turns:
            self._wake()

    def _dispatch(self) -> None:
        """Starts what stands first in the queues; what finds no room waits for the next step.

        Chunks that wait for their debug arrays must not hold the rows that others need.
        """
        for _ in range(len(self._turns)):
            session = self._turns.popleft()
            while session.status is Status.QUEUED:
                if not session.queue:
                    session.become(Status.IDLE)
                elif (
                    self.runs >= self.max_runs
                    or (len(self._debugs) >= MAX_DEBUGS and is_debug(session.queue[0]))
                    or not self._dispatcher.dispatch(session)
                ):
                    self._turns.append(session)
                    break

    def _start(self, session: Session, request: Chunk | Replay) -> None:
        """A chunk or a replay is under way from now on."""
        assert session.row is not None
        runner, ticks = self.runner, len(request.inputs)
        if isinstance(request, Replay):
            runner, reset_scope = runner.of_fingerprint(request.fingerprint), request.reset
        else:
            reset_scope = "experience" if request.reset_experience else ""
            request.started_at = time.perf_counter()
            if request.debug:
                self._debugs.add(request)
        # From here on nothing can fail.
        session.queue.popleft()
        session.become(Status.RUNNING)
        self.runs += 1
        self._schedule(Run(session, request, session.row, self._rows.take(), runner, ticks, reset_scope))

    def _committed(self, group: list[Committed]) -> None:
        """Replies, and lets the sessions go on."""
        for session, chunk, applied in group:
            self._answer(session, chunk, applied, None)
            self._release(session)
        self.observers.committed(group)

    def _schedule(self, run: Run) -> None:
        is_long = run.rest > self._short_ticks or isinstance(run.request, Replay)
        (self._long if is_long and run.runner.lets_others_run else self._short).add(run)

    def _passes(self, run: Run) -> bool:
        """Whether a finished run is to be recorded; a replay is through, and whatever is wrong is refused."""
        try:
            if isinstance(run.request, Replay):
                check_replay(run, run.request)
            else:
                if run.request.cancelled or run.request.deadline is not None:
                    run.request.check_wanted()
                if not run.finite:
                    check_finite(run, self._rows, self.layout)
                if run.request.debug and run.debug is None:  # before the record: it may fail
                    before = self.cache.read(run.session)
                    debugging = self._executor.debug(run.request, before, self.runner)
                    debugging.add_done_callback(partial(self._debugged, run))
                    return False
        except ServeError as error:
            self._drop(run, error)
            return False
        except Exception:  # a mistake: it may cost this run, and nobody else's
            logger.exception("a run of session %r could not be finished", run.session.session_id)
            self._drop(run, internal_error())
            return False
        if isinstance(run.request, Chunk):
            run.request.stepped_at = time.perf_counter()
            if not run.request.stateless:
                return True
            self._give_back(run)
            return False
        self.cache.swap(run.session, run.row)
        self.observers.recovered(len(run.request.inputs))
        self._answer(run.session, run.request, None, None)
        self._release(run.session)
        return False

    def _debugged(self, run: Run, debugging: "asyncio.Future[dict[str, Array]]") -> None:
        """The finished run has its debug arrays now, and goes on to its record."""
        try:
            run.debug = debugging.result()
        except Exception:
            logger.exception("the debug arrays of session %r could not be computed", run.session.session_id)
            self._drop(run, internal_error())
            return
        if self._passes(run):
            self.write_ahead.record_chunks([run], self._committed, self._drop)

    def _give_back(self, run: Run) -> None:
        """Nothing is written of a stateless chunk: its caller gets the state with the outputs."""
        session, chunk, outputs = run.session, run.request, run.outputs
        assert isinstance(chunk, Chunk) and outputs is not None
        applied = Applied(
            0, session.position + len(outputs), 0, session.experience + chunk.reset_experience, outputs,
            replayed=False, debug=run.debug, state=self._rows.read(run.row),
        )  # fmt: skip
        self.cache.swap(session, run.row)
        self._answer(session, chunk, applied, None)
        self._release(session)
        self.observers.committed([Committed(session, chunk, applied)])

    def _drop(self, run: Run, error: ServeError) -> None:
        """The run comes to nothing, and its session stands where it did."""
        self._rows.give(run.row)
        self._answer(run.session, run.request, None, error)
        if isinstance(run.request, Replay):  # the state lies before where the session stands: it is loaded anew
            self.cache.forget(run.session)
        self._release(run.session)

    def _release(self, session: Session) -> None:
        """A run of the session is over; its row was given back, or swapped in."""
        self.runs -= 1
        if session.status is Status.ENDING:
            self.cache.forget(session)
            session.become(Status.ENDED)
        self._on_free(session)

    def _on_free(self, session: Session) -> None:
        """Nothing of the session is under way: its requests may begin, and those of others that waited for room."""
        if session.status not in GONE:
            if session.queue:
                session.become(Status.QUEUED)
                self._turns.append(session)
            else:
                session.become(Status.IDLE)
        if self._turns:
            self._wake()
        if self.recovery.wanted:
            self.recovery.on_capacity()
        if self.ownership.shared and session.status is Status.IDLE and session.tier is Tier.STORE:
            self.ownership.give_up([session])

    # Answers.

    def _answer(self, session: Session, request: Request, result: Any, error: ServeError | None) -> None:
        """Tells whoever asked."""
        if not isinstance(request, Replay):
            self.queued -= 1
            self._queued_bytes -= self._bytes_of(request)
        if self._debugs and isinstance(request, Chunk):
            self._debugs.discard(request)
        try:
            request.done(result, error)
        except Exception:  # a mistake in what follows from one answer must not keep others from theirs
            logger.exception("an answer of session %r could not be given", session.session_id)

    def _reply_again(self, session: Session, chunk: Chunk, reply: Reply) -> None:
        """Answers a chunk that was applied before with what it was answered then."""
        if chunk.debug and reply.debug is None:
            self._debugging.add(debugging := self.loop.create_task(self._debug_again(session, chunk, reply)))
            debugging.add_done_callback(self._debugging.discard)
            return
        applied = Applied(
            session.incarnation, reply.start + len(reply.inputs), session.durable_position, reply.experience,
            reply.outputs, replayed=True, debug=reply.debug if chunk.debug else None,
        )  # fmt: skip
        self._answer(session, chunk, applied, None)
        self.observers.replied_again(session, chunk, applied)

    async def _debug_again(self, session: Session, chunk: Chunk, reply: Reply) -> None:
        """Answers a chunk whose reply is kept without its debug arrays: they follow from the state before it."""
        try:
            before = (await self.view_at(session, reply.start)).state
            assert before is not None
            debugged = replace(reply, debug=await self._executor.debug(chunk, before, self.runner))
        except ServeError as error:
            if error.reason == "POSITION_GONE":
                error = ServeError(
                    "REPLY_GONE",
                    f"the outputs at position {reply.start} of session {session.session_id!r} are kept, but its debug "
                    "arrays can't be had any more: send the chunk without debug",
                    got=reply.start,
                )
            self._answer(session, chunk, None, error)
        except Exception:
            logger.exception("debug arrays of session %r could not be computed again", session.session_id)
            mistake = ServeError("INTERNAL", "the debug arrays could not be computed; the chunk was applied before")
            self._answer(session, chunk, None, mistake)
        else:
            self._reply_again(session, chunk, debugged)

    def _fail_all(self, session: Session, error: ServeError) -> None:
        """Refuses everything that waits for the session."""
        while session.queue:
            self._answer(session, session.queue.popleft(), None, error)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is queued or under way."""
        return not self.queued and not self.runs

    # Sessions.

    def discard(self, session: Session, error: ServeError) -> None:
        """The session is not served here any more; its state goes as soon as nothing runs on it."""
        self._fail_all(session, error)
        if session.status is Status.RUNNING:
            session.become(Status.ENDING)
        elif not session.ended:
            session.become(Status.ENDED)
            self.cache.forget(session)

    def _read_anew(self, session: Session) -> None:
        """It is not known where the session stands in the shared store. Given up, its lease gets another token, which
        also fences off a write that is still on its way."""
        self.ownership.give_up([session])

    def register_all(self, heads: Iterable[Head]) -> None:
        """Knows the sessions that an earlier run of this server left in the store."""
        for head in sorted(heads, key=lambda head: head.last_used_at):
            self.table.register(head)

    @property
    def fingerprint(self) -> str:
        """Of the code that steps sessions."""
        return self.runner.fingerprint

    def check_room(self) -> None:
        """Raises SESSION_LIMIT when there are as many sessions as may be."""
        self.table.check_room()

    def receive(self, session: Session, state: Float32) -> Session:
        """Takes a session over from another version's engine, as it stands, with its state [S]."""
        moved = self.table.new_session(
            session.session_id, session.owner, session.incarnation, position=session.position,
            experience=session.experience,
        )  # fmt: skip
        moved.ordinal, moved.replies = session.ordinal, session.replies
        moved.created_at, moved.durable_position = session.created_at, session.durable_position
        moved.replayed_elsewhere = session.replayed_elsewhere
        # Where nothing is recorded, the store knows it only if it was spilled.
        moved.snapshot_ordinal = session.snapshot_ordinal if self.journal.volatile else session.ordinal
        self.table.add(moved)
        self.cache.admit(moved, state)
        return moved

    async def view_at(self, session: Session, position: int) -> StateView:
        """The session as it was when it last stood at an earlier position.

        Raises MODEL_MISMATCH, POSITION_GONE, STEP_GAP for one that lies ahead, CORRUPT_STATE.
        """
        session.check_model(self.digest)
        past = self.table.new_session(session.session_id, session.owner, session.incarnation)
        return await self.recovery.view_at(session, past, position)

    async def between(self, session: Session, after: int, until: int) -> Recovered:
        """A state of the session at or before position `after`, and all that was applied from there to `until`.

        Raises as `view_at`.
        """
        session.check_model(self.digest)
        return await self.recovery.between(session, after, until)


def is_debug(request: Request) -> bool:
    """Whether it asks for debug arrays."""
    return isinstance(request, Chunk) and request.debug
