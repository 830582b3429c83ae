"""Snapshots of states in the store, so that a recovery need not replay a whole life."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.journal import Journal, Outcomes
from dnc_serve.handler.engine.observer import Committed, Observer
from dnc_serve.handler.engine.session import Session, Status
from dnc_serve.handler.engine.state_cache import StateCache
from dnc_serve.handler.errors import Overtaken
from dnc_serve.handler.store.contract import Begin, Keep, Mutation, Snapshot
from dnc_serve.handler.store.records import encode_snapshot

logger = logging.getLogger(__name__)

# Snapshots that fall due together are spread over batches.
SNAPSHOTS_A_BATCH = 4
SNAPSHOTS_A_COMMIT = 256


class Snapshots(Observer):
    """Takes snapshots between ticks, by timesteps or bytes since the last one, and of states that leave memory.

    The latter are for the way back alone: each stands in for the one before the last, so that a session that moves up
    and down with every timestep doesn't leave as many states in its history.
    """

    def __init__(
        self, journal: Journal, cache: StateCache, config: ServeConfig, observer: Observer,
        overtaken: Callable[[Session], None],
    ) -> None:  # fmt: skip
        self._journal = journal
        self._cache = cache
        self._every_timesteps = config.snapshot_every_timesteps
        self._every_bytes = config.snapshot_every_bytes
        self._observer = observer
        self._overtaken = overtaken
        self._due: dict[Session, None] = {}  # in the order in which they fell due

    def committed(self, group: Sequence[Committed]) -> None:
        """Sessions have gone on: by and by each needs a snapshot."""
        if self._journal.volatile:
            return
        for session, _, _ in group:
            if self._is_due(session):
                self._due[session] = None
        if self._due:
            self._take_some()

    def _is_due(self, session: Session) -> bool:
        return (
            session.timesteps_since_snapshot >= self._every_timesteps
            or session.bytes_since_snapshot >= self._every_bytes
        )

    def _take_some(self) -> None:
        taken: list[Session] = []
        while self._due and len(taken) < SNAPSHOTS_A_BATCH:
            session = next(iter(self._due))
            del self._due[session]
            if session.has_whole_state and not session.ended and session.status is not Status.WAITING:
                taken.append(session)
        if taken:
            self.store_states(taken, lambda outcomes: None)

    def store_states(self, sessions: list[Session], then: Callable[[Outcomes], None]) -> None:
        """Writes snapshots of sessions that are in memory, unless the newest one is there already.

        `then` gets one error or None for each session, here or in a later turn of the loop.
        """
        started = time.perf_counter()
        changed = [session for session in sessions if session.snapshot_ordinal != session.ordinal]
        if not changed:
            then([None] * len(sessions))
            return
        snapshots = [_snapshot_of(session, self._cache) for session in changed]
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
                    self._overtaken(session)
            self._observer.snapshotted(time.perf_counter() - started)
            then([errors.get(session) for session in sessions])

        # Where nothing is recorded, the store knows a session only by its snapshot.
        mutations: list[Mutation] = [
            Begin(session.head(), snapshot) if self._journal.volatile else Keep(snapshot, _superseded(session))
            for session, snapshot in zip(changed, snapshots, strict=True)
        ]
        self._journal.write(mutations, kept)

    async def store_all(self, sessions: Sequence[Session]) -> None:
        """Writes a snapshot of every session that has moved on since its last one."""
        for start in range(0, len(sessions), SNAPSHOTS_A_COMMIT):
            # Only now: while others were written, it may have ended or left memory.
            group = [
                one
                for one in sessions[start : start + SNAPSHOTS_A_COMMIT]
                if one.has_whole_state and not (one.ended or one.end_unknown)
            ]
            stored: asyncio.Future[Outcomes] = asyncio.get_running_loop().create_future()
            self.store_states(group, stored.set_result)
            if any(await stored):
                logger.error("sessions could not be snapshotted; their records are enough to recover them")
                return


def _snapshot_of(session: Session, cache: StateCache) -> Snapshot:
    return encode_snapshot(
        session.session_id, session.incarnation, session.ordinal, session.position, session.experience, CLOCK.now(),
        session.fingerprint, cache.read(session),
    )  # fmt: skip


def _superseded(session: Session) -> tuple[int, ...]:
    """The passing snapshots that another one stands in for: all but the newest, which may have to be fallen back to."""
    return tuple(ordinal for ordinal in session.passing_snapshots if ordinal != session.snapshot_ordinal)


def _kept(session: Session, ordinal: int, *, passing: bool) -> None:
    """The store has a snapshot as of this record, in the place of those that it superseded."""
    newest = tuple(former for former in session.passing_snapshots if former == session.snapshot_ordinal)
    session.passing_snapshots = (*newest, ordinal) if passing else newest
    session.snapshot_ordinal = max(session.snapshot_ordinal, ordinal)
