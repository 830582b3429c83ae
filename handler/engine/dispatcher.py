"""What becomes of the request that stands first in a session's queue: it starts, is answered, or is refused."""

import logging
from collections.abc import Callable
from typing import Any

from dnc_serve.handler.engine.lifecycle import Lifecycle
from dnc_serve.handler.engine.observer import Committed, Observer
from dnc_serve.handler.engine.ownership import Ownership
from dnc_serve.handler.engine.recovery import Recovery
from dnc_serve.handler.engine.replies import Reply
from dnc_serve.handler.engine.requests import Chunk, Delete, Inspect, Move, Replay, Request, Reset, StateView
from dnc_serve.handler.engine.session import Session, Status, Tier, Verdict
from dnc_serve.handler.engine.state_cache import StateCache
from dnc_serve.handler.engine.write_ahead import WriteAhead
from dnc_serve.handler.errors import ServeError, internal_error

logger = logging.getLogger(__name__)


class Dispatcher:
    """Judges requests, and hands each to the part of the engine that does it.

    `start(session, request)` takes a request from its queue and starts a run on a state that is in a slot; `answer`
    tells whoever asked, and `on_free(session)` lets the next requests begin.
    """

    def __init__(
        self,
        ownership: Ownership,
        recovery: Recovery,
        cache: StateCache,
        write_ahead: WriteAhead,
        lifecycle: Lifecycle,
        observer: Observer,
        *,
        digest: str,
        start: Callable[[Session, Chunk | Replay], None],
        answer: Callable[[Session, Request, Any, ServeError | None], None],
        reply_again: Callable[[Session, Chunk, Reply], None],
        on_free: Callable[[Session], None],
    ) -> None:
        self._ownership = ownership
        self._recovery = recovery
        self._cache = cache
        self._write_ahead = write_ahead
        self._lifecycle = lifecycle
        self._observer = observer
        self._digest = digest
        self._start = start
        self._answer = answer
        self._reply_again = reply_again
        self._on_free = on_free

    def dispatch(self, session: Session) -> bool:
        """Starts, answers or refuses the request that stands first; False if there is no room for it now."""
        request = session.queue[0]
        try:
            if self._ownership.shared:
                self._ownership.check(session)
            if not isinstance(request, Replay):
                if session.end_unknown and not isinstance(request, Delete):
                    raise session.may_have_ended()
                if request.cancelled or request.deadline is not None:
                    request.check_wanted()
                if request.error_state is not None and request.error_state.failed:
                    request.error_state.check(session, request)
            begins_anew = isinstance(request, Delete) or (isinstance(request, Reset) and request.scope == "all")
            if session.corrupt and not begins_anew:
                raise ServeError("CORRUPT_STATE", session.corrupt)
            match request:
                case Chunk():
                    return self._chunk(session, request)
                case Replay():
                    return self._replay(session, request)
                case Reset():
                    self._reset(session, request)
                case Inspect():
                    self._inspect(session, request)
                case Move():
                    self._move(session, request)
                case Delete():
                    session.check_incarnation(request.incarnation)
                    session.queue.popleft()
                    self._lifecycle.end(session, request)
                case _:
                    raise AssertionError(request)
        except ServeError as error:
            self._refuse(session, request, error)
        except Exception:  # a mistake: it may cost this request, and nobody else's
            logger.exception("a request to session %r could not be begun", session.session_id)
            self._refuse(session, request, internal_error())
        return True

    def _refuse(self, session: Session, request: Request, error: ServeError) -> None:
        if session.queue and session.queue[0] is request:
            session.queue.popleft()
            self._answer(session, request, None, error)

    def _chunk(self, session: Session, chunk: Chunk) -> bool:
        session.check_model(self._digest)
        verdict = session.judge_chunk(chunk)
        if verdict is Verdict.APPLY:
            return self._run(session, chunk)
        if verdict is Verdict.ASK_STORE:
            if chunk.position is None:
                self._recovery.recall_replies(session, chunk)
            else:
                self._recovery.find_reply(session, chunk)
        else:
            assert isinstance(verdict, Reply)
            session.queue.popleft()
            self._reply_again(session, chunk, verdict)
        return True

    def _run(self, session: Session, request: Chunk | Replay) -> bool:
        if session.row is None:
            if session.host_state is None:
                self._recovery.load(session)
                return True
            if not self._cache.promote(session):
                return False
        self._start(session, request)
        return True

    def _replay(self, session: Session, replay: Replay) -> bool:
        if len(replay.inputs):
            return self._run(session, replay)
        self._cache.reset(session, replay.reset)
        session.queue.popleft()
        self._answer(session, replay, None, None)
        return True

    def _reset(self, session: Session, reset: Reset) -> None:
        verdict = session.judge_reset(reset)
        if verdict is Verdict.ASK_STORE:
            self._recovery.find_reset(session, reset)
            return
        if verdict is Verdict.DUPLICATE:
            session.queue.popleft()
            self._answer(session, reset, False, None)
            return
        if reset.scope == "experience":
            session.check_model(self._digest)
            if session.tier is Tier.STORE:
                self._recovery.load(session)
                return

        def written(error: ServeError | None) -> None:
            self._answer(session, reset, None if error else True, error)
            if error is None:
                self._observer.committed([Committed(session, reset, None)])
            self._on_free(session)

        session.queue.popleft()
        session.become(Status.WAITING)
        self._write_ahead.reset(session, reset, written)

    def _move(self, session: Session, move: Move) -> None:
        session.check_incarnation(move.incarnation)
        session.check_model(self._digest)
        move.target.check_room()
        if session.tier is Tier.STORE:
            self._recovery.load(session)
            return
        state = self._cache.read(session)
        session.queue.popleft()
        self._lifecycle.move(session, move, state)

    def _inspect(self, session: Session, inspect: Inspect) -> None:
        state = None
        if inspect.with_state:
            session.check_model(self._digest)
            if session.tier is Tier.STORE:
                self._recovery.load(session)
                return
            state = self._cache.read(session)
        session.queue.popleft()
        self._answer(session, inspect, StateView(session.head(), session.fingerprint, state), None)
