"""The only writer of where sessions stand: a record is written, then the session goes on, then whoever asked is told.

    record_chunks   chunks whose timesteps were stepped, many in one group
    reset, begin, end, move

Each refusal of the store leaves the session where it stood. A session that another server has taken over is given up.
"""

from collections.abc import Callable, Sequence

import numpy as np

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.engine.batch_scheduler import Run
from dnc_serve.handler.engine.journal import Journal, Outcomes
from dnc_serve.handler.engine.observer import Committed
from dnc_serve.handler.engine.replies import Reply
from dnc_serve.handler.engine.requests import Applied, Chunk, Reset, Target
from dnc_serve.handler.engine.session import Session
from dnc_serve.handler.engine.session_table import SessionTable, Tombstone
from dnc_serve.handler.engine.state_cache import StateCache
from dnc_serve.handler.errors import Overtaken, ServeError, StoreUnavailable
from dnc_serve.handler.store.contract import Append, Begin, End, Keep, Mutation, Record
from dnc_serve.handler.store.records import MOVED, encode_record, encode_snapshot

NO_TIMESTEPS: Array = np.zeros((0, 0), np.float32)


class WriteAhead:
    """Writes records through the journal, and commits what they say.

    `overtaken(session)` is called when the store says that another server has the session, `unknown(session)` when a
    shared store didn't say whether it took a write: others may see it there, so the session is to be read anew.
    """

    def __init__(
        self,
        journal: Journal,
        table: SessionTable,
        cache: StateCache,
        overtaken: Callable[[Session], None],
        unknown: Callable[[Session], None],
        *,
        digest: str,
        fingerprint: str,
    ) -> None:
        self._journal = journal
        self._table = table
        self._cache = cache
        self._overtaken = overtaken
        self._unknown = unknown
        self._digest = digest
        self._fingerprint = fingerprint

    def record_chunks(
        self,
        runs: list[Run],
        committed: Callable[[list[Committed]], None],
        refused: Callable[[Run, ServeError], None],
    ) -> None:
        """Records finished chunks in one group, and commits each that the store took."""
        for run in runs:
            run.request.written = True
        if self._journal.volatile:
            now = CLOCK.steady()
            committed([self._commit_chunk(run, now) for run in runs])
            return
        now = CLOCK.now()
        mutations = [Append(self._record_of(run, now)) for run in runs]

        def written(outcomes: Outcomes) -> None:
            group, now = [], CLOCK.steady()
            for run, error in zip(runs, outcomes, strict=True):
                if error is None:
                    group.append(self._commit_chunk(run, now))
                else:
                    self._lost(run.session, error)
                    refused(run, error)
            durable.extend((one.session, one.applied.position) for one in group if one.applied is not None)
            committed(group)

        durable: list[tuple[Session, int]] = []
        self._journal.write(mutations, written, lambda: _now_durable(durable))

    def _record_of(self, run: Run, now: float) -> Record:
        session, chunk = run.session, run.request
        assert isinstance(chunk, Chunk) and run.outputs is not None
        record = encode_record(
            session.session_id, session.incarnation, session.ordinal + 1, session.position + len(chunk.inputs),
            session.experience + chunk.reset_experience, now, self._fingerprint, chunk.inputs, run.outputs,
            "experience" if chunk.reset_experience else "", chunk.writer_id,
        )  # fmt: skip
        session.bytes_since_snapshot += len(record.body)
        return record

    def _commit_chunk(self, run: Run, now: float) -> Committed:
        """The session stands behind the chunk from now on."""
        session, chunk, outputs = run.session, run.request, run.outputs
        assert isinstance(chunk, Chunk) and outputs is not None
        start, timesteps = session.position, len(chunk.inputs)
        self._cache.swap(session, run.row)
        session.position = start + timesteps
        session.ordinal += 1
        if chunk.reset_experience:
            session.experience += 1
        session.fingerprint = self._fingerprint
        session.timesteps_since_snapshot += timesteps
        session.replies.add(
            Reply(
                start, chunk.inputs, chunk.reset_experience, session.experience, outputs, chunk.writer_id, run.debug
            )
        )  # fmt: skip
        self._table.touch(session, now)
        applied = Applied(
            session.incarnation, session.position, session.durable_position, session.experience, outputs,
            replayed=False, debug=run.debug,
        )  # fmt: skip
        return Committed(session, chunk, applied)

    def reset(self, session: Session, reset: Reset, then: Callable[[ServeError | None], None]) -> None:
        """Records and applies a reset: of the experience, for which the state must be in memory, or of all, under the
        present model."""
        now = CLOCK.now()
        reset.written = True
        record = encode_record(
            session.session_id, session.incarnation, session.ordinal + 1, session.position, session.experience + 1,
            now, self._fingerprint, None, None, reset.scope, reset.writer_id,
        )  # fmt: skip
        mutations: list[Mutation] = [Append(record, self._digest if reset.scope == "all" else None)]
        if reset.scope == "all":
            # What came before may be of another model, or damaged: a recovery begins here.
            snapshot = encode_snapshot(
                session.session_id, session.incarnation, record.ordinal, record.position, record.experience, now,
                self._fingerprint, self._cache.layout.initial,
            )  # fmt: skip
            mutations.append(Keep(snapshot))

        def apply() -> None:
            if session.ended:  # its lease was lost meanwhile: its state is another server's
                return
            if reset.scope == "all":
                session.digest = self._digest
                session.fingerprint = self._fingerprint
                session.corrupt = ""
            self._cache.reset(session, reset.scope)
            session.ordinal += 1
            session.experience += 1
            session.replies.add(
                Reply(session.position, NO_TIMESTEPS, True, session.experience, NO_TIMESTEPS, reset.writer_id)
            )
            self._table.touch(session, CLOCK.steady())

        self.record(session, mutations, apply, then)

    def begin(self, session: Session, state: Float32 | None, then: Callable[[ServeError | None], None]) -> None:
        """Records a new session with a state [S] (None: as every session begins), which is admitted to memory."""
        snapshot = None
        if state is not None:
            snapshot = encode_snapshot(
                session.session_id, session.incarnation, session.ordinal, session.position, session.experience,
                CLOCK.now(), session.fingerprint, state,
            )  # fmt: skip
        if not self._journal.volatile:
            session.snapshot_ordinal = session.ordinal  # how every session begins needs no snapshot

        def apply() -> None:
            if not session.ended:
                self._cache.admit(session, state)

        self.record(session, [Begin(session.head(), snapshot)], apply, then)

    def move(
        self,
        session: Session,
        target: Target,
        former: tuple[int, ...],
        state: Float32,
        then: Callable[[ServeError | None], None],
    ) -> None:
        """Records that another model computes the session from here on, which begins there with its present state [S]:
        what was applied before is never replayed by the new one. The state leaves this engine's memory."""
        now = CLOCK.now()
        record = encode_record(
            session.session_id, session.incarnation, session.ordinal + 1, session.position, session.experience, now,
            target.fingerprint, None, None, MOVED, 0,
        )  # fmt: skip
        snapshot = encode_snapshot(
            session.session_id, session.incarnation, record.ordinal, record.position, record.experience, now,
            target.fingerprint, state,
        )  # fmt: skip

        def apply() -> None:
            session.ordinal += 1
            self._cache.forget(session)

        self.record(session, [Append(record, target.digest), Keep(snapshot, former)], apply, then)

    def end(self, session: Session, why: str, then: Callable[[ServeError | None], None]) -> None:
        """Records the session's end: its state goes, a tombstone stays."""
        now = CLOCK.now()
        end = End(session.session_id, session.incarnation, why, now)

        def apply() -> None:
            self._table.remove(session)
            self._table.bury(session.session_id, Tombstone(session.incarnation, session.owner, why, now))
            self._cache.forget(session)

        if self._journal.volatile and session.snapshot_ordinal >= 0:  # the store knows only what was spilled
            self._journal.write([end], lambda outcomes: None)
        self.record(session, [end], apply, then)

    def record(
        self,
        session: Session,
        mutations: Sequence[Mutation],
        apply: Callable[[], None],
        then: Callable[[ServeError | None], None],
    ) -> None:
        """Writes mutations of one session; if the store takes them they are applied, and `then` is told in any case."""

        def written(outcomes: Outcomes) -> None:
            error = next((outcome for outcome in outcomes if outcome is not None), None)
            if error is None:
                apply()
            else:
                self._lost(session, error)
            then(error)

        if self._journal.volatile:
            written([])
            return
        position = session.position
        self._journal.write(mutations, written, lambda: _now_durable([(session, position)]))

    def _lost(self, session: Session, error: ServeError) -> None:
        if isinstance(error, Overtaken):
            self._overtaken(session)
        elif (
            isinstance(error, StoreUnavailable)
            and self._journal.store.shared
            and self._table.find(session.session_id) is session  # else it has only begun
        ):
            self._unknown(session)


def _now_durable(positions: list[tuple[Session, int]]) -> None:
    for session, position in positions:
        session.durable_position = max(session.durable_position, position)
