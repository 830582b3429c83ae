"""From a finished run to its answer: check, write ahead, commit."""

import logging
import time
from typing import TYPE_CHECKING

import numpy as np

from dnc_serve.handler.engine.company import Run
from dnc_serve.handler.engine.sessions import Reply, Session
from dnc_serve.handler.engine.work import Applied, Chunk, Replay
from dnc_serve.handler.errors import Overtaken, ServeError
from dnc_serve.handler.journal.journal import Outcomes
from dnc_serve.handler.journal.records import encode_record
from dnc_serve.handler.journal.stores.contract import Append, Mutation

if TYPE_CHECKING:
    from dnc_serve.handler.engine.engine import Engine

logger = logging.getLogger(__name__)

# Replays under another artifact than the original must come this close, relative to the largest output if it exceeds 1.
REPLAY_TOLERANCE = 1e-5


class Commits:
    """Commits chunks, in groups."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def commit(self, runs: list[Run]) -> None:
        """Takes finished runs to their answers, in one group."""
        engine = self._engine
        good: list[Run] = []
        for run in runs:
            try:
                if isinstance(run.work, Replay):
                    self._check_replay(run, run.work)
                    self._finish_replay(run)
                    continue
                run.work.check_wanted()
                if not run.finite or not np.isfinite(run.outputs.sum()):
                    self._check_finite(run)
                if isinstance(run.work, Chunk) and run.work.debug:  # before the record: it may fail
                    run.debug = engine.stepper.debug(run.work, engine.tiers.read(run.session))
                good.append(run)
            except ServeError as error:
                engine.drop(run, error)
            except Exception:  # a mistake: it may cost this run, and nobody else's
                logger.exception("a run of session %r could not be committed", run.session.session_id)
                engine.drop(run, ServeError("INTERNAL", "the server made a mistake; nothing was applied"))
        if not good:
            return
        for run in good:
            run.work.written = True
        if engine.journal.volatile:
            self._committed(good, [None] * len(good))
            return
        now, stepped_at = time.time(), time.perf_counter()
        for run in good:
            if isinstance(run.work, Chunk):
                run.work.stepped_at = stepped_at
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
                if isinstance(error, Overtaken):
                    engine.leases.lose(run.session)
                engine.drop(run, error)
                continue
            session, chunk = run.session, run.work
            assert isinstance(chunk, Chunk)
            engine.tiers.swap(session, run.work_row)
            start = session.position
            session.position += len(chunk.inputs)
            session.ordinal += 1
            session.experience += chunk.reset_experience
            session.fingerprint = engine.fingerprint
            session.timesteps_since_snapshot += len(chunk.inputs)
            session.replies.add(
                Reply(start, chunk.inputs, chunk.reset_experience, session.experience, run.outputs, run.debug)
            )
            engine.registry.touch(session, now)
            engine.metrics.timesteps.inc(len(chunk.inputs))
            if chunk.reset_experience:
                engine.metrics.resets.labels("experience").inc()
            result = Applied(
                session.incarnation, session.position, session.durable_position, session.experience, run.outputs,
                replayed=False, debug=run.debug,
            )  # fmt: skip
            engine.answer(session, chunk, result, None)
            self.changed(session)
            engine.release(run)
        engine.snapshots.take_some()

    def changed(self, session: Session) -> None:
        """The session stands elsewhere than before: a snapshot may be due, and watchers want to know."""
        self._engine.snapshots.count(session)
        for tell in session.watchers or ():
            tell(session)

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
        if run.tiles.fingerprint == replay.fingerprint:
            same = run.outputs.tobytes() == replay.expected.tobytes()
        else:
            allowed = REPLAY_TOLERANCE * max(1.0, float(np.abs(replay.expected).max()))
            same = bool(np.abs(run.outputs - replay.expected).max() <= allowed)
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


def _not_finite(what: str, tensor: str, timestep: int) -> ServeError:
    return ServeError(
        "NON_FINITE_RESULT", f"{what} is not finite; the chunk was not applied", tensor=tensor, timestep=timestep
    )
