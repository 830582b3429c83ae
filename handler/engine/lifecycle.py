"""How sessions begin, are reset, and end: written ahead like any chunk."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.engine.registry import Tombstone
from dnc_serve.handler.engine.sessions import Session, Tier
from dnc_serve.handler.engine.work import Delete, Reset
from dnc_serve.handler.errors import Overtaken, ServeError, StoreUnavailable
from dnc_serve.handler.journal.journal import Outcomes
from dnc_serve.handler.journal.records import encode_record, encode_snapshot
from dnc_serve.handler.journal.stores.contract import Append, Begin, End, Keep, Mutation

if TYPE_CHECKING:
    from dnc_serve.handler.engine.engine import Engine


class Lifecycle:
    """Begins, resets and ends sessions."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._beginning: dict[Session, asyncio.Future[ServeError | None]] = {}
        self._ending: dict[Session, None] = {}

    def has_begun(self, session: Session) -> bool:
        """Whether it is as durable as promised that there is this session."""
        return session not in self._beginning

    async def begun(self, session: Session) -> None:
        """Returns when the session has begun; raises why it has not."""
        beginning = self._beginning.get(session)
        if beginning is not None and (error := await asyncio.shield(beginning)) is not None:
            raise error

    def begin(self, session: Session, state: Float32 | None, then: Callable[[ServeError | None], None]) -> None:
        """Registers a new session with a state (None: zeros) and makes it as durable as promised."""
        engine = self._engine
        engine.registry.check_room()
        tombstone = engine.registry.tombstone(session.session_id)
        engine.registry.add(session)
        session.busy = True
        beginning = self._beginning[session] = engine.loop.create_future()

        def begun(outcomes: Outcomes) -> None:
            session.busy = False
            error = outcomes[0]
            if session.ended:  # its lease was lost meanwhile
                error = error or Overtaken(session.session_id)
            elif error is not None:
                engine.registry.remove(session)
                if tombstone is not None:  # the store has it still
                    engine.registry.bury(session.session_id, tombstone)
                engine.leases.ended(session)
                session.ended = True
                engine.fail_all(session, error)
            else:
                engine.tiers.admit(session, state)
                engine.go_on(session)
            del self._beginning[session]
            beginning.set_result(error)
            then(error)

        if engine.journal.volatile:
            begun([None])
            return
        snapshot = None if state is None else engine.snapshots.of(session, state)
        session.snapshot_ordinal = session.ordinal  # zeros need no snapshot
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

        def written(outcomes: Outcomes) -> None:
            session.busy = False
            if outcomes[0] is None:
                if not session.ended:  # else its lease was lost meanwhile, and its state is another server's
                    apply()
                session.ordinal += 1
                session.experience += 1
                engine.registry.touch(session, time.time())
                engine.metrics.resets.labels(reset.scope).inc()
                self._engine.commits.changed(session)
                engine.answer(session, reset, True, None)
            else:
                engine.answer(session, reset, None, outcomes[0])
                if isinstance(outcomes[0], Overtaken):
                    engine.leases.lose(session)
            engine.go_on(session)

        mutations = [] if engine.journal.volatile else self._record_of(session, reset)
        session.fifo.popleft()
        session.busy = reset.written = True
        if engine.journal.volatile:
            written([None])
        else:
            engine.journal.write(mutations, written, [(session, session.position)])

    def _record_of(self, session: Session, reset: Reset) -> list[Mutation]:
        engine = self._engine
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
        return mutations

    def end_again(self) -> None:
        """Ends the sessions of which it is not known whether the store has ended them."""
        for session in list(self._ending):
            if session.ended:  # otherwise: it belongs to another server now
                del self._ending[session]
            elif session.idle:
                self._engine.submit(session, Delete(lambda result, error: None, why=session.ending))

    def end(self, session: Session, work: Delete) -> None:
        """Ends the session: its state goes, a tombstone stays."""
        engine = self._engine
        session.fifo.popleft()
        session.busy = work.written = True
        now = time.time()

        def ended(outcomes: Outcomes) -> None:
            session.busy = False
            error = outcomes[0]
            if error is not None:
                if isinstance(error, StoreUnavailable):  # whether it has ended is not known: it does, by and by
                    session.ending = work.why
                    self._ending[session] = None
                    error = session.may_have_ended()
                    engine.fail_all(session, error)
                engine.answer(session, work, None, error)
                if isinstance(error, Overtaken):
                    engine.leases.lose(session)
                engine.go_on(session)
                return
            self._ending.pop(session, None)
            engine.registry.remove(session)
            engine.leases.ended(session)
            tombstone = Tombstone(session.incarnation, session.owner, work.why, now)
            engine.registry.bury(session.session_id, tombstone)
            engine.tiers.forget(session)
            session.ended = True
            for changed in session.watchers or ():
                changed(session)
            if work.why != "deleted":
                engine.metrics.evictions.labels(work.why).inc()
            engine.answer(session, work, True, None)
            engine.fail_all(session, tombstone.refusal(session.session_id))
            engine.go_on(session)  # others may have waited for its slot

        end = End(session.session_id, session.incarnation, work.why, now)
        if not engine.journal.volatile:
            engine.journal.write([end], ended)
            return
        if session.snapshot_ordinal >= 0:  # the store knows only what was spilled
            engine.journal.write([end], lambda outcomes: None)
        ended([None])
