"""The session engine: work in, results out, states inside.

One owner of all states, on one event loop. Each session has one FIFO; a chunk reads as: judge, gather, step, check,
write ahead, commit, answer. Between the gather and the commit it works on a row of its own, so whatever goes wrong
leaves its session as it was.
"""

import asyncio
import logging
import time

import numpy as np
import torch

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.engine.commits import Commits
from dnc_serve.handler.engine.company import Run
from dnc_serve.handler.engine.leases import Leases
from dnc_serve.handler.engine.lifecycle import Lifecycle
from dnc_serve.handler.engine.loading import Loading
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.registry import Registry, Tombstone
from dnc_serve.handler.engine.sessions import Replies, Reply, Session, Tier, Verdict, judge_chunk, judge_reset
from dnc_serve.handler.engine.slab import Slab
from dnc_serve.handler.engine.snapshots import Snapshots
from dnc_serve.handler.engine.stepper import Stepper
from dnc_serve.handler.engine.tiers import Tiers
from dnc_serve.handler.engine.turns import Turns
from dnc_serve.handler.engine.work import Applied, Chunk, Delete, Peek, Replay, Reset, Seen, Work
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.journal.journal import Journal
from dnc_serve.handler.journal.stores.contract import Head
from dnc_serve.handler.metrics import Metrics
from dnc_serve.handler.tracing import Tracing

logger = logging.getLogger(__name__)

# Beyond so many turns' worth of rows, chunks under way only hold rows that others could use.
MAX_RUNS_IN_TILES = 8


class Engine:
    """Applies work to sessions. All methods are called on the loop that it was made on."""

    def __init__(
        self, tiles: ModelRunner, journal: Journal, registry: Registry, config: ServeConfig, metrics: Metrics,
        *, digest: str, fingerprint: str,
    ) -> None:  # fmt: skip
        self.loop = asyncio.get_running_loop()
        self.tiles = tiles
        self.layout = tiles.layout
        self.journal = journal
        self.registry = registry
        self.config = config
        self.metrics = metrics
        self.digest = digest
        self.fingerprint = fingerprint
        self.row_bytes = tiles.layout.size * 4
        self.input_size, self.output_size = tiles.input_size, tiles.output_size
        if self.row_bytes > config.host_bytes:
            raise ServeError(
                "STATE_TOO_LARGE",
                f"a session's state takes {self.row_bytes} bytes, more than the {config.host_bytes} bytes that "
                f"host_bytes allows for all of them",
            )
        self.max_runs = min(config.slots, MAX_RUNS_IN_TILES * tiles.largest)
        self.commits = Commits(self)
        self.lifecycle = Lifecycle(self)
        self.snapshots = Snapshots(self)
        self.loading = Loading(self)
        self.leases = Leases(self, config.lease_s)
        self.tracing: Tracing | None = None
        self.queued = 0
        self._slab = slab = Slab(config.slots + self.max_runs, tiles.layout.size, tiles.device)
        self.tiers = Tiers(
            slab, config.slots, config.host_bytes, self.row_bytes, self.snapshots.store_states, self.go_on,
            self.loop.call_soon, metrics, journaled=not journal.volatile,
        )  # fmt: skip
        self.stepper = Stepper(tiles, slab, metrics)
        self.turns = Turns(self, self.max_runs)

    def close(self) -> None:
        """Ends the engine's threads; what they were at comes to its end first."""
        self.turns.close()
        self.loading.close()

    # What the doors call.

    def submit(self, session: Session, work: Work) -> None:
        """Queues work; raises QUEUE_FULL when the session's FIFO or the server's is full."""
        config = self.config
        if session.ended:  # while the caller was on its way here
            self.registry.get(session.session_id, session.owner)
            raise ServeError("NOT_READY", "the session has just moved or begun anew", retry_after_s=0.05)
        if len(session.fifo) >= config.max_queued_chunks or self.queued >= config.max_queued_chunks_total:
            whose = f"session {session.session_id!r}" if self.queued < config.max_queued_chunks_total else "the server"
            raise ServeError(
                "QUEUE_FULL",
                f"the queue of {whose} is full",
                retry_after_s=0.05,
                queued=len(session.fifo),
                limit=config.max_queued_chunks,
            )
        self.queued += 1
        session.fifo.append(work)
        if isinstance(work, Chunk):
            self.turns.arrived(session, work.arrived_at)
        else:
            self.turns.schedule(session)

    def go_on(self, session: Session) -> None:
        """The session is free again: its own work may go on, and so may that of others that waited for room."""
        self.turns.schedule(session)
        self.turns.go_on()
        self.loading.go_on()
        if self.leases.shared and session.tier is Tier.STORE and session.idle and not session.ended:
            self.leases.give_up([session])

    def new_session(
        self, session_id: str, owner: str, incarnation: int, *, position: int = 0, experience: int = 0
    ) -> Session:
        """A session that is not registered yet."""
        now = time.time()
        return Session(
            session_id=session_id,
            incarnation=incarnation,
            digest=self.digest,
            owner=owner,
            created_at=now,
            last_used_at=now,
            replies=Replies(self.config.reply_window_chunks, self.config.reply_window_bytes),
            position=position,
            experience=experience,
            fingerprint=self.fingerprint,
        )

    def take_up_all(self) -> None:
        """Knows the sessions that an earlier run of this server left in the store."""
        for head in sorted(self.journal.store.heads(), key=lambda head: head.last_used_at):
            if head.ended:
                self.bury(head)
            else:
                self.take_up(head)

    def take_up(self, head: Head) -> Session:
        """Knows a session that the store has; its state is brought when it is needed."""
        session = self.new_session(
            head.session_id, head.owner, head.incarnation, position=head.position, experience=head.experience
        )
        session.digest, session.ordinal = head.digest, head.ordinal
        session.created_at, session.last_used_at = head.created_at, head.last_used_at
        session.durable_position = head.position
        self.registry.add(session)
        return session

    def bury(self, head: Head) -> None:
        """Knows how a session that the store has ended."""
        self.registry.bury(head.session_id, Tombstone(head.incarnation, head.owner, head.ended, head.ended_at))

    def answer(self, session: Session, work: Work, result: object, error: ServeError | None) -> None:
        """Tells whoever asked."""
        if not isinstance(work, Replay):
            self.queued -= 1
        try:
            self._tell(session, work, result, error)
        except Exception:  # a mistake in what follows from one answer must not keep others from theirs
            logger.exception("an answer of session %r could not be given", session.session_id)

    def _tell(self, session: Session, work: Work, result: object, error: ServeError | None) -> None:
        if error is not None:
            work.fail(error)
            return
        if isinstance(work, Chunk):
            exemplar = None
            if work.traceparent and self.tracing is not None:
                exemplar = {"trace_id": self.tracing.record(work, session.session_id, session.position)}
            self.metrics.step_duration_at[work.door].observe(time.perf_counter() - work.arrived_at, exemplar)
        work.finish(result)

    def fail_all(self, session: Session, error: ServeError) -> None:
        """Refuses everything that waits for the session."""
        while session.fifo:
            self.answer(session, session.fifo.popleft(), None, error)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is queued or under way."""
        return not self.queued and not self.turns.runs

    # What stands first in a FIFO.

    def begin(self, session: Session, work: Work) -> bool:
        """Starts, answers or refuses the work that stands first; False if there is no room for it now."""
        try:
            self.leases.check(session)
            if not isinstance(work, Replay):
                work.check_wanted()
                if work.course is not None:
                    work.course.check(session, work)
            begins_anew = isinstance(work, Delete) or (isinstance(work, Reset) and work.scope == "all")
            if session.corrupt and not begins_anew:
                raise ServeError("CORRUPT_STATE", session.corrupt)
            match work:
                case Chunk():
                    return self._begin_chunk(session, work)
                case Replay():
                    return self._begin_run(session, work) if len(work.inputs) else self._replay_reset(session, work)
                case Reset():
                    self._begin_reset(session, work)
                case Peek():
                    self._begin_peek(session, work)
                case Delete():
                    session.check_incarnation(work.incarnation)
                    self.lifecycle.end(session, work)
                case _:
                    raise AssertionError(work)
        except ServeError as error:
            self._refuse_first(session, work, error)
        except Exception:  # a mistake: it may cost this work, and nobody else's
            logger.exception("work for session %r could not be begun", session.session_id)
            self._refuse_first(session, work, ServeError("INTERNAL", "the server made a mistake; nothing was applied"))
        return True

    def _refuse_first(self, session: Session, work: Work, error: ServeError) -> None:
        if session.fifo and session.fifo[0] is work:
            session.fifo.popleft()
            self.answer(session, work, None, error)

    def _begin_chunk(self, session: Session, chunk: Chunk) -> bool:
        self._check_model(session)
        verdict, reply = judge_chunk(session, chunk)
        if verdict is Verdict.ASK_JOURNAL:
            self.loading.find_reply(session, chunk)
            return True
        if verdict is Verdict.DONE_BEFORE and reply is not None:
            session.fifo.popleft()
            self.answer_again(session, chunk, reply)
            return True
        return self._begin_run(session, chunk)

    def _begin_run(self, session: Session, work: Chunk | Replay) -> bool:
        if not self._bring(session):
            return True
        if not self.tiers.lift(session):
            return False
        outputs = np.empty((len(work.inputs), self.output_size), np.float32)
        session.fifo.popleft()
        session.running = True
        tiles = self.stepper.tiles_for(work.fingerprint) if isinstance(work, Replay) else self.tiles
        self.turns.add(Run(session, work, outputs, self._slab.take(), tiles))
        if isinstance(work, Chunk):
            work.started_at = time.perf_counter()
            self.metrics.queue_wait.observe(work.started_at - work.arrived_at)
        return True

    def _replay_reset(self, session: Session, replay: Replay) -> bool:
        state = self.tiers.read(session)
        self.stepper.reset_first(replay, torch.from_numpy(state))
        self.tiers.write(session, state)
        session.fifo.popleft()
        self.answer(session, replay, None, None)
        return True

    def _begin_reset(self, session: Session, reset: Reset) -> None:
        if judge_reset(session, reset) is Verdict.DONE_BEFORE:
            session.fifo.popleft()
            self.answer(session, reset, False, None)
            return
        if reset.scope == "all":
            self.lifecycle.reset_all(session, reset)
            return
        self._check_model(session)
        if self._bring(session):
            self.lifecycle.reset_experience(session, reset)

    def _begin_peek(self, session: Session, peek: Peek) -> None:
        if peek.with_state:
            self._check_model(session)
            if not self._bring(session):
                return
        state = self.tiers.read(session) if peek.with_state else None
        session.fifo.popleft()
        self.answer(session, peek, Seen(session.head(), session.fingerprint, state), None)

    def _bring(self, session: Session) -> bool:
        """Whether the state is in memory; if not, it is asked for, and the FIFO waits."""
        if session.tier is Tier.STORE:
            self.loading.load(session)
            return False
        return True

    def _check_model(self, session: Session) -> None:
        if session.digest != self.digest:
            raise ServeError(
                "MODEL_MISMATCH",
                f"session {session.session_id!r} belongs to model {session.digest[:12]}, this server runs "
                f"{self.digest[:12]}: export it, reset it with scope ALL, or delete it",
                session_digest=session.digest,
                model_digest=self.digest,
            )

    # What runs end in.

    def answer_again(self, session: Session, chunk: Chunk, reply: Reply) -> None:
        """Answers a chunk that was applied before with what it was answered then."""
        self.metrics.steps_replayed.inc()
        result = Applied(
            session.incarnation, reply.start + len(reply.inputs), session.durable_position, reply.experience,
            reply.outputs, replayed=True, debug=reply.debug,
        )  # fmt: skip
        self.answer(session, chunk, result, None)

    def release(self, run: Run) -> None:
        """The run is over: its session may go on. The row that it leaves was given back or swapped in."""
        self.turns.released(run.session)
        run.session.running = False
        if run.session.ended:
            self.tiers.forget(run.session)
        self.go_on(run.session)

    def drop(self, run: Run, error: ServeError) -> None:
        """The run comes to nothing, and its session stands where it did."""
        self._slab.give(run.work_row)
        self.answer(run.session, run.work, None, error)
        if isinstance(run.work, Replay):  # the state lies before where the session stands: it is to be brought anew
            self.tiers.forget(run.session)
        self.release(run)

    def working_state(self, run: Run) -> Float32:
        """The state [S] that the run has come to."""
        return self._slab.read(run.work_row)
