"""How sessions begin, end, and come to another version of their model: written ahead like any chunk."""

import asyncio
from collections.abc import Callable
from typing import Any

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.engine.observer import Observer
from dnc_serve.handler.engine.ownership import Ownership
from dnc_serve.handler.engine.requests import Delete, Move, Request
from dnc_serve.handler.engine.session import Session, Status
from dnc_serve.handler.engine.session_table import SessionTable, Tombstone
from dnc_serve.handler.engine.write_ahead import WriteAhead
from dnc_serve.handler.errors import Overtaken, ServeError, StoreUnavailable


class Lifecycle:
    """Begins and ends sessions. `answer` tells whoever asked, `fail_all(session, error)` refuses all that waits for a
    session, and `on_free(session)` lets requests begin."""

    def __init__(
        self,
        table: SessionTable,
        ownership: Ownership,
        write_ahead: WriteAhead,
        observer: Observer,
        answer: Callable[[Session, Request, Any, ServeError | None], None],
        fail_all: Callable[[Session, ServeError], None],
        on_free: Callable[[Session], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._table = table
        self._ownership = ownership
        self._write_ahead = write_ahead
        self._observer = observer
        self._answer = answer
        self._fail_all = fail_all
        self._on_free = on_free
        self._beginning: dict[Session, asyncio.Future[ServeError | None]] = {}
        self._end_unknown: dict[Session, None] = {}

    def begin(self, session: Session, state: Float32 | None, then: Callable[[ServeError | None], None]) -> None:
        """Registers a new session with a state [S] (None: zeros) and makes it as durable as promised."""
        self._table.check_room()
        tombstone = self._table.tombstone(session.session_id)
        self._table.add(session)
        session.become(Status.WAITING)
        begun = self._beginning[session] = self._loop.create_future()

        def written(error: ServeError | None) -> None:
            if session.ended:  # its lease was lost meanwhile
                error = error or Overtaken(session.session_id)
            elif error is not None:
                self._table.remove(session)
                if tombstone is not None:  # the store has it still
                    self._table.bury(session.session_id, tombstone)
                self._ownership.ended(session)
                session.become(Status.ENDED)
                self._fail_all(session, error)
            else:
                self._on_free(session)
            del self._beginning[session]
            begun.set_result(error)
            then(error)

        self._write_ahead.begin(session, state, written)

    def has_begun(self, session: Session) -> bool:
        """Whether it is as durable as promised that there is this session."""
        return session not in self._beginning

    async def begun(self, session: Session) -> None:
        """Returns when the session has begun; raises why it has not."""
        beginning = self._beginning.get(session)
        if beginning is not None and (error := await asyncio.shield(beginning)) is not None:
            raise error

    def end_again(self, submit: Callable[[Session, Request], None]) -> None:
        """Ends the sessions of which it is not known whether the store has ended them."""
        for session in list(self._end_unknown):
            if session.ended:  # it belongs to another server now
                del self._end_unknown[session]
            elif session.status is Status.IDLE:
                submit(session, Delete(lambda result, error: None, why=session.end_unknown))

    def end(self, session: Session, delete: Delete) -> None:
        """Ends the session whose queue the request was taken from: its state goes, a tombstone stays."""
        session.become(Status.WAITING)
        delete.written = True

        def written(error: ServeError | None) -> None:
            if isinstance(error, StoreUnavailable):  # it ends by and by
                session.end_unknown = delete.why
                self._end_unknown[session] = None
                error = session.may_have_ended()
                self._fail_all(session, error)
            elif error is None:
                self._end_unknown.pop(session, None)
                self._ownership.ended(session)
                if not session.ended:
                    session.become(Status.ENDED)
                self._observer.ended(session, delete.why)
                gone = Tombstone(session.incarnation, session.owner, delete.why, CLOCK.now())
                self._fail_all(session, gone.refusal(session.session_id))
            self._answer(session, delete, True if error is None else None, error)
            self._on_free(session)  # others may have waited for its slot

        self._write_ahead.end(session, delete.why, written)

    def move(self, session: Session, move: Move, state: Float32) -> None:
        """Hands the session over with its state [S]. Between its two engines nobody finds it missing: what waits for it
        is told to come again, and finds it there."""
        session.become(Status.WAITING)
        move.written = True

        def written(error: ServeError | None) -> None:
            if error is None and session.ended:  # its lease was lost meanwhile
                error = Overtaken(session.session_id)
            if error is not None:
                self._answer(session, move, None, error)
                self._on_free(session)
                return
            self._table.remove(session)
            moved = move.target.receive(session, state)
            self._ownership.hand_over(session, move.target.ownership, moved)
            session.become(Status.ENDED)
            self._observer.ended(session, "moved")
            self._answer(session, move, moved, None)
            self._fail_all(session, ServeError("NOT_READY", "the session has just moved", retry_after_s=0.05))
            self._on_free(session)  # others may have waited for its slot

        self._write_ahead.move(session, move.target, move.former, state, written)
