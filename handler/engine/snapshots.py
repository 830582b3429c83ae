"""Snapshots of states in the store, so that a recovery need not replay a whole life."""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.engine.sessions import Session
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
    """Takes snapshots between ticks, by timesteps or bytes since the last one, and of states that leave memory."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._due: deque[Session] = deque()

    def count(self, session: Session) -> None:
        """The session has gone on; by and by it needs a snapshot."""
        config = self._engine.config
        if self._engine.journal.volatile or (
            session.timesteps_since_snapshot < config.snapshot_every_timesteps
            and session.bytes_since_snapshot < config.snapshot_every_bytes
        ):
            return
        session.timesteps_since_snapshot = session.bytes_since_snapshot = 0
        self._due.append(session)

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
            session = self._due.popleft()
            if session.storable and not session.ended and not session.busy:
                taken.append(session)
        if taken:
            self.store_states(taken, lambda succeeded: None)

    def store_states(self, sessions: list[Session], then: Callable[[bool], None]) -> None:
        """Writes snapshots of sessions that are in memory, unless the newest one is there already."""
        engine = self._engine
        started = time.perf_counter()
        changed = [session for session in sessions if session.snapshot_ordinal != session.ordinal]
        snapshots = [self.of(session, engine.tiers.read(session)) for session in changed]

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
        sessions = list(engine.registry)
        for start in range(0, len(sessions), SNAPSHOTS_A_COMMIT):
            # Only now: while others were written, it may have ended or left memory.
            group = [session for session in sessions[start : start + SNAPSHOTS_A_COMMIT] if session.storable]
            stored = engine.loop.create_future()
            self.store_states(group, stored.set_result)
            if not await stored:
                logger.error("sessions could not be snapshotted; their records are enough to recover them")
                return
