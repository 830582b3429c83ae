"""Snapshots of states in the store, so that a recovery need not replay a whole life."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.engine.sessions import Session
from dnc_serve.handler.errors import Overtaken
from dnc_serve.handler.journal.journal import Outcomes
from dnc_serve.handler.journal.records import encode_snapshot
from dnc_serve.handler.journal.stores.contract import Begin, Keep, Mutation, Snapshot

if TYPE_CHECKING:
    from dnc_serve.handler.engine.engine import Engine

logger = logging.getLogger(__name__)

# Snapshots that fall due together are spread over turns.
SNAPSHOTS_A_TURN = 4
SNAPSHOTS_A_COMMIT = 256


class Snapshots:
    """Takes snapshots between ticks, by timesteps or bytes since the last one, and of states that leave memory.

    The latter are for the way back alone: each stands in for the one before the last, so that a session that moves up
    and down with every timestep doesn't leave as many states in its history.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._due: dict[Session, None] = {}  # in the order in which they fell due

    def count(self, session: Session) -> None:
        """The session has gone on; by and by it needs a snapshot."""
        if not self._engine.journal.volatile and self._is_due(session):
            self._due[session] = None

    def _is_due(self, session: Session) -> bool:
        config = self._engine.config
        return (
            session.timesteps_since_snapshot >= config.snapshot_every_timesteps
            or session.bytes_since_snapshot >= config.snapshot_every_bytes
        )

    def of(self, session: Session, state: Float32) -> Snapshot:
        """The snapshot of a session in this state [S]."""
        return encode_snapshot(
            session.session_id, session.incarnation, session.ordinal, session.position, session.experience,
            time.time(), session.fingerprint, state,
        )  # fmt: skip

    def take_some(self) -> None:
        """Takes a few of those that are due."""
        taken: list[Session] = []
        while self._due and len(taken) < SNAPSHOTS_A_TURN:
            session = next(iter(self._due))
            del self._due[session]
            if session.storable and not session.ended and not session.busy:
                taken.append(session)
        if taken:
            self.store_states(taken, lambda outcomes: None)

    def store_states(self, sessions: list[Session], then: Callable[[Outcomes], None]) -> None:
        """Writes snapshots of sessions that are in memory, unless the newest one is there already.

        `then` gets one error or None for each session, here or in a later turn of the loop.
        """
        engine = self._engine
        started = time.perf_counter()
        changed = [session for session in sessions if session.snapshot_ordinal != session.ordinal]
        if not changed:
            then([None] * len(sessions))
            return
        snapshots = [self.of(session, engine.tiers.read(session)) for session in changed]
        due = {session for session in changed if self._is_due(session)}
        for session in due:
            session.timesteps_since_snapshot = session.bytes_since_snapshot = 0

        def kept(outcomes: Outcomes) -> None:
            errors = dict(zip(changed, outcomes, strict=True))
            for session, snapshot in zip(changed, snapshots, strict=True):
                error = errors[session]
                if error is None:
                    _kept(session, snapshot.ordinal, passing=session not in due)
                elif isinstance(error, Overtaken):
                    engine.leases.lose(session)
            engine.metrics.snapshot_duration.observe(time.perf_counter() - started)
            then([errors.get(session) for session in sessions])

        # Where nothing is recorded, the store knows a session only by its snapshot.
        mutations: list[Mutation] = [
            Begin(session.head(), snapshot) if engine.journal.volatile else Keep(snapshot, _superseded(session))
            for session, snapshot in zip(changed, snapshots, strict=True)
        ]
        engine.journal.write(mutations, kept)

    async def store_all(self) -> None:
        """Writes a snapshot of every session that has moved on since its last one."""
        engine = self._engine
        sessions = list(engine.registry)
        for start in range(0, len(sessions), SNAPSHOTS_A_COMMIT):
            # Only now: while others were written, it may have ended or left memory.
            group = [
                session
                for session in sessions[start : start + SNAPSHOTS_A_COMMIT]
                if session.storable and not (session.ended or session.ending)
            ]
            stored = engine.loop.create_future()
            self.store_states(group, stored.set_result)
            if any(await stored):
                logger.error("sessions could not be snapshotted; their records are enough to recover them")
                return


def _superseded(session: Session) -> tuple[int, ...]:
    """The passing snapshots that another one stands in for: all but the newest, which may have to be fallen back to."""
    return tuple(ordinal for ordinal in session.passing_snapshots if ordinal != session.snapshot_ordinal)


def _kept(session: Session, ordinal: int, *, passing: bool) -> None:
    """The store has a snapshot as of this record, in the place of those that it superseded."""
    newest = tuple(former for former in session.passing_snapshots if former == session.snapshot_ordinal)
    session.passing_snapshots = (*newest, ordinal) if passing else newest
    session.snapshot_ordinal = max(session.snapshot_ordinal, ordinal)
