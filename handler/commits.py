"""From a finished run to its answer: check, write ahead, commit. Resets, ends and snapshots are written here too."""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dnc_serve.handler.codec import Float32
from dnc_serve.handler.company import Run
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.records import encode_record, encode_snapshot
from dnc_serve.handler.registry import Tombstone
from dnc_serve.handler.sessions import Reply, Session, Tier
from dnc_serve.handler.stores.contract import Append, Begin, End, Keep, Mutation, Snapshot
from dnc_serve.handler.work import Applied, Chunk, Delete, Replay, Reset

if TYPE_CHECKING:
    from dnc_serve.handler.engine import Engine

logger = logging.getLogger(__name__)

Outcomes = list[ServeError | None]
# Snapshots that fall due together are spread over turns.
SNAPSHOTS_A_TURN = 4
SNAPSHOTS_A_COMMIT = 256
# Replays under another artifact than the original must come this close.
REPLAY_TOLERANCE = 1e-5


class Commits:
    """Everything that changes where a session stands."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._due: deque[Session] = deque()

    def commit(self, runs: list[Run]) -> None:
        """Takes finished runs to their answers, in one group."""
        engine = self._engine
        engine_finite = engine.finite(runs)
        good: list[Run] = []
        for run in runs:
            try:
                if isinstance(run.work, Replay):
                    self._check_replay(run, run.work)
                    self._finish_replay(run)
                    continue
                run.work.check_wanted()
                if not engine_finite or not np.isfinite(run.outputs.sum()):
                    self._check_finite(run)
                good.append(run)
            except ServeError as error:
                engine.drop(run, error)
        if not good:
            return
        if engine.journal.volatile:
            self._committed(good, [None] * len(good))
            return
        now = time.time()
        mutations: list[Mutation] = [self._append(run, now) for run in good]
        marks = [(run.session, run.session.position + len(run.work.inputs)) for run in good]
        engine.journal.write(mutations, lambda outcomes: self._committed(good, outcomes), marks)

    def _append(self, run: Run, now: float) -> Append:
        session, chunk = run.session, run.work
        assert isinstance(chunk, Chunk)
        record = encode_record(
            session.session_id, session.incarnation, session.ordinal + 1, session.position + len(chunk.inputs),
            session.experience + chunk.reset_experience, now, self._engine.fingerprint, chunk.inputs, run.outputs,
            "experience" if chunk.reset_experience else "",
        )  # fmt: skip
        session.bytes_since_snapshot += len(record.body)
        return Append(record)

    def _committed(self, runs: list[Run], outcomes: Outcomes) -> None:
        engine = self._engine
        now = time.time()
        for run, error in zip(runs, outcomes, strict=True):
            if error is not None:
                if error.reason == "SESSION_MOVED":
                    engine.leases.lose(run.session)
                engine.drop(run, error)
                continue
            session, chunk = run.session, run.work
            assert isinstance(chunk, Chunk)
            debug = engine.debug_arrays(run) if chunk.debug else None
            engine.tiers.swap(session, run.work_row)
            start = session.position
            session.position += len(chunk.inputs)
            session.ordinal += 1
            session.experience += chunk.reset_experience
            session.fingerprint = engine.fingerprint
            session.timesteps_since_snapshot += len(chunk.inputs)
            session.replies.add(
                Reply(start, chunk.inputs, chunk.reset_experience, session.experience, run.outputs, debug)
            )
            engine.registry.touch(session, now)
            engine.metrics.timesteps.inc(len(chunk.inputs))
            if chunk.reset_experience:
                engine.metrics.resets.labels("experience").inc()
            result = Applied(
                session.incarnation, session.position, session.durable_position, session.experience, run.outputs,
                replayed=False, debug=debug,
            )  # fmt: skip
            engine.answer(session, chunk, result, None)
            self._after_change(session)
            engine.release(run)
        self._snapshot_some()

    def _after_change(self, session: Session) -> None:
        config = self._engine.config
        if (
            session.timesteps_since_snapshot >= config.snapshot_every_timesteps
            or session.bytes_since_snapshot >= config.snapshot_every_bytes
        ) and not self._engine.journal.volatile:
            session.timesteps_since_snapshot = session.bytes_since_snapshot = 0
            self._due.append(session)
        if session.watchers:
            for changed in session.watchers:
                changed(session)

    # Checks.

    def _check_finite(self, run: Run) -> None:
        """Raises NON_FINITE_RESULT, naming the timestep or the tensor."""
        bad = np.argwhere(~np.isfinite(run.outputs))
        if len(bad):
            raise _not_finite(f"output {int(bad[0][1])} at timestep {int(bad[0][0])}", "outputs", int(bad[0][0]))
        state = self._engine.working_state(run)
        for field in self._engine.layout.fields:
            if not np.isfinite(state[field.offset : field.offset + field.size]).all():
                raise _not_finite(f"{field.name} after timestep {len(run.work.inputs) - 1}", field.name, run.done - 1)

    def _check_replay(self, run: Run, replay: Replay) -> None:
        same = (
            run.outputs.tobytes() == replay.expected.tobytes()
            if replay.same_artifact
            else np.allclose(run.outputs, replay.expected, rtol=0.0, atol=REPLAY_TOLERANCE)
        )
        if not same:
            difference = float(np.abs(run.outputs - replay.expected).max())
            run.session.corrupt = (
                f"session {run.session.session_id!r}: a replay of its journal gave other outputs than were recorded, "
                f"by up to {difference:.3g}"
            )
            raise ServeError("CORRUPT_STATE", run.session.corrupt)

    def _finish_replay(self, run: Run) -> None:
        engine, session = self._engine, run.session
        engine.tiers.swap(session, run.work_row)
        engine.metrics.timesteps_recovered.inc(len(run.work.inputs))
        engine.answer(session, run.work, None, None)
        engine.release(run)

    # Begin, reset, end.

    def begin(self, session: Session, state: Float32 | None, then: Callable[[ServeError | None], None]) -> None:
        """Registers a new session with a state (None: zeros) and makes it as durable as promised."""
        engine = self._engine
        engine.registry.check_room()
        engine.registry.add(session)
        session.busy = True

        def begun(outcomes: Outcomes) -> None:
            session.busy = False
            if outcomes[0] is not None:
                engine.registry.remove(session)
                engine.leases.ended(session)
                session.ended = True
                engine.fail_all(session, outcomes[0])
            else:
                engine.tiers.admit(session, state)
                engine.go_on(session)
            then(outcomes[0])

        if engine.journal.volatile:
            begun([None])
            return
        snapshot = None if state is None else self._snapshot_of(session, state)
        if snapshot is not None:
            session.snapshot_ordinal = session.ordinal
        engine.journal.write([Begin(session.head(), snapshot)], begun, [(session, session.position)])

    def reset_experience(self, session: Session, reset: Reset) -> None:
        """Zeroes the memory tensors; the state is in memory."""

        def apply() -> None:
            state = self._engine.tiers.read(session)
            state[self._engine.layout.experience_offset :] = 0.0
            self._engine.tiers.write(session, state)

        self._reset(session, reset, apply)

    def reset_all(self, session: Session, reset: Reset) -> None:
        """Zeroes the state, under the present model; it need not be in memory."""

        def apply() -> None:
            session.digest = self._engine.digest
            session.fingerprint = self._engine.fingerprint
            session.corrupt = ""
            if session.tier is Tier.STORE:
                self._engine.tiers.admit(session, None)
            else:
                self._engine.tiers.write(session, None)

        self._reset(session, reset, apply)

    def _reset(self, session: Session, reset: Reset, apply: Callable[[], None]) -> None:
        engine = self._engine
        session.fifo.popleft()
        session.busy = True

        def written(outcomes: Outcomes) -> None:
            session.busy = False
            if outcomes[0] is None:
                apply()
                session.ordinal += 1
                session.experience += 1
                engine.registry.touch(session, time.time())
                engine.metrics.resets.labels(reset.scope).inc()
                self._after_change(session)
                engine.answer(session, reset, True, None)
            else:
                engine.answer(session, reset, None, outcomes[0])
                if outcomes[0].reason == "SESSION_MOVED":
                    engine.leases.lose(session)
            engine.go_on(session)

        if engine.journal.volatile:
            written([None])
            return
        record = encode_record(
            session.session_id, session.incarnation, session.ordinal + 1, session.position, session.experience + 1,
            time.time(), engine.fingerprint, None, None, reset.scope,
        )  # fmt: skip
        mutations: list[Mutation] = [Append(record, engine.digest if reset.scope == "all" else None)]
        if reset.scope == "all":
            # What came before may be of another model, or damaged: a recovery begins here.
            zeros = np.zeros(engine.layout.size, np.float32)
            mutations.append(
                Keep(
                    encode_snapshot(
                        session.session_id,
                        session.incarnation,
                        record.ordinal,
                        record.position,
                        record.experience,
                        record.at,
                        engine.fingerprint,
                        zeros,
                    )
                )
            )
        engine.journal.write(mutations, written, [(session, session.position)])

    def end(self, session: Session, work: Delete) -> None:
        """Ends the session: its state goes, a tombstone stays."""
        engine = self._engine
        session.fifo.popleft()
        session.busy = True
        now = time.time()

        def ended(outcomes: Outcomes) -> None:
            session.busy = False
            if outcomes[0] is not None:
                engine.answer(session, work, None, outcomes[0])
                engine.go_on(session)
                return
            engine.registry.remove(session)
            engine.leases.ended(session)
            engine.registry.bury(session.session_id, Tombstone(session.incarnation, session.owner, work.why, now))
            engine.tiers.forget(session)
            session.ended = True
            for changed in session.watchers or ():
                changed(session)
            if work.why != "deleted":
                engine.metrics.evictions.labels(work.why).inc()
            engine.answer(session, work, True, None)
            engine.fail_all(
                session, ServeError("SESSION_NOT_FOUND", f"session {session.session_id!r} ended: {work.why}")
            )

        end = End(session.session_id, session.incarnation, work.why, now)
        if not engine.journal.volatile:
            engine.journal.write([end], ended)
            return
        if session.snapshot_ordinal >= 0:  # the store knows only what was spilled
            engine.journal.write([end], lambda outcomes: None)
        ended([None])

    # Snapshots.

    def _snapshot_of(self, session: Session, state: Float32) -> Snapshot:
        return encode_snapshot(
            session.session_id, session.incarnation, session.ordinal, session.position, session.experience,
            time.time(), session.fingerprint, state,
        )  # fmt: skip

    def _snapshot_some(self) -> None:
        taken: list[Session] = []
        while self._due and len(taken) < SNAPSHOTS_A_TURN:
            session = self._due.popleft()
            if not session.ended and session.tier is not Tier.STORE and not session.busy:
                taken.append(session)
        if taken:
            self.store_states(taken, lambda succeeded: None)

    def store_states(self, sessions: list[Session], then: Callable[[bool], None]) -> None:
        """Writes snapshots of sessions that are in memory, unless the newest one is there already."""
        engine = self._engine
        started = time.perf_counter()
        changed = [session for session in sessions if session.snapshot_ordinal != session.ordinal]
        snapshots = [self._snapshot_of(session, engine.tiers.read(session)) for session in changed]

        def kept(outcomes: Outcomes) -> None:
            for session, snapshot, error in zip(changed, snapshots, outcomes, strict=True):
                if error is None:
                    session.snapshot_ordinal = max(session.snapshot_ordinal, snapshot.ordinal)
            engine.metrics.snapshot_duration.observe(time.perf_counter() - started)
            then(not any(outcomes))

        if not changed:
            then(True)
            return
        # Where nothing is recorded, the store knows a session only by its snapshot.
        mutations: list[Mutation] = [
            Begin(session.head(), snapshot) if engine.journal.volatile else Keep(snapshot)
            for session, snapshot in zip(changed, snapshots, strict=True)
        ]
        engine.journal.write(mutations, kept)

    async def store_all(self) -> None:
        """Writes a snapshot of every session that has moved on since its last one."""
        engine = self._engine
        moved = [
            session
            for session in engine.registry
            if session.tier is not Tier.STORE and session.snapshot_ordinal != session.ordinal and not session.corrupt
        ]
        for start in range(0, len(moved), SNAPSHOTS_A_COMMIT):
            stored = engine.loop.create_future()
            self.store_states(moved[start : start + SNAPSHOTS_A_COMMIT], stored.set_result)
            if not await stored:
                logger.error("sessions could not be snapshotted; their records are enough to recover them")
                return


def _not_finite(what: str, tensor: str, timestep: int) -> ServeError:
    return ServeError(
        "NON_FINITE_RESULT", f"{what} is not finite; the chunk was not applied", tensor=tensor, timestep=timestep
    )
