"""Gets the entries of one session's ledger answered, whatever happens to connections and servers.

Everything on the fast path happens in plain calls: `push` sends what the window lets, `receive` settles what was
answered. Only trouble starts a task, which waits and tries again until an answer comes or the timeout has passed.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakMethod

from dnc_serve.client.calls import Calls
from dnc_serve.client.contact import is_silence
from dnc_serve.client.errors import (
    ClientClosed,
    DeadlineExceeded,
    DncError,
    Draining,
    SessionExpired,
    SessionMoved,
    SessionNotFound,
    StepGap,
    Unavailable,
    from_status,
)
from dnc_serve.client.hosts import Route
from dnc_serve.client.pipe import Pipe
from dnc_serve.client.resume import Entry, Ledger, Mark
from dnc_serve.client.retry import may_pass, persist
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

OpenPipe = Callable[[Route, str], Pipe]
"""A pipe for a session: its own, or one that it shares with others."""

MakeAgain = WeakMethod[Callable[[], Awaitable[int]]]
"""Makes a session that its server has lost, as new, and returns its incarnation. Weak: it is the handle's, and whoever
drops that wants no session."""


class Delivery:
    """One session's entries on their way. All methods are called on the client's event loop."""

    def __init__(
        self,
        session_id: str,
        incarnation: int,
        ledger: Ledger,
        route: Route,
        calls: Calls,
        open_pipe: OpenPipe,
        make_again: MakeAgain | None = None,
    ) -> None:
        self.ledger = ledger
        self.route = route
        self._session_id = session_id
        self._incarnation = incarnation
        self._make_again = make_again
        self._loss: DncError | None = None  # why the session is to be made again before anything is sent
        self._making = asyncio.Lock()
        self._calls = calls
        self._open_pipe = open_pipe
        self._pipe: Pipe | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._attempt: asyncio.Future[None] | None = None
        self._latest_trouble: DncError | None = None
        self._next_trouble: DncError | None = None
        self._unreported: DncError | None = None
        self._room = asyncio.Event()
        self._closed = False

    @property
    def failed(self) -> bool:
        """Whether something failed that nobody has been told of: what follows it must not be sent in its place."""
        return self._unreported is not None

    def check(self) -> None:
        """Raises what failed, if nobody has been told."""
        if self._unreported is not None:
            error, self._unreported = self._unreported, None
            raise error

    def push(self) -> None:
        """Sends what may be sent now. Raises ClientClosed."""
        self._calls.hosts.check()
        if self._closed:
            raise ClientClosed(f"session {self._session_id!r} was closed")
        if self._recovery is not None and self._attempt is None:
            return  # the server has asked for a pause, or can't be reached
        if not self.ledger.unsettled:
            return
        if self._loss is not None:
            if self._recovery is None:
                self._try_later(self._loss)
            return
        pipe = self._pipe
        if pipe is None:
            try:
                pipe = self._pipe = self._open_pipe(self.route, self._session_id)
            except DncError as error:  # there is no token to be had, for one
                self._give_up(error)
                return
            pipe.join(self._session_id, self)
        if not pipe.is_open:
            return  # it will tell when it has ended
        for entry in self.ledger.due():
            if _message(entry).request_id:
                # An earlier sending may still wait in the pipe, and must keep its id: its refusal is not this one's.
                entry.request = copy.copy(entry.request)
            _message(entry).request_id = entry.request_id
            pipe.send(entry.request)

    async def settled(self, entry: Entry) -> None:
        """Returns when the entry has been answered; raises what it failed with.

        If nothing comes within the timeout, all that is unanswered fails.
        """
        if not entry.settled:
            waiter = asyncio.get_running_loop().create_future()
            entry.waiters.append(waiter)
            try:
                async with asyncio.timeout(self._calls.timeout_s):
                    await waiter
            except TimeoutError:
                timeout = DeadlineExceeded(f"no answer within {self._calls.timeout_s:g} s")
                self.route.go_on(away_from=self.route.target)
                self._drop_pipe()
                self._give_up(self._latest_trouble or timeout)
        if entry.failure is not None:
            self._unreported = None
            raise entry.failure

    async def restore(self) -> None:
        """Gives back to a server what it has lost of the answered, as in a power loss, as far as that is kept.

        Raises SessionNotFound if the session is lost or was ended, and can't be made again.
        """
        calls, route, name = self._calls, self.route, self._session_id
        try:
            stands = (await calls.unary("GetSession", pb.GetSessionRequest(session_id=name), route, name)).session
            if stands.incarnation != self._incarnation:
                return  # somebody else has made another one
            lost = self.ledger.kept_after(stands.position, stands.experience)
        except SessionNotFound as refusal:
            self._begin_again(refusal)
            await self._make_lost()
            lost = self.ledger.kept_after(0, 0)
        for entry in lost:
            if entry.timesteps:
                step = await calls.unary("Step", pb.StepRequest(chunk=entry.request.chunk), route, name)
                entry.check_again(step.result.outputs.data)
            else:
                await calls.unary("ResetSession", pb.ResetSessionRequest(reset=entry.request.reset), route, name)

    async def room(self) -> None:
        """Returns when one more entry would be sent at once."""
        while not self.ledger.has_room:
            self._room.clear()
            await self._room.wait()

    def withdraw(self, mark: Mark, error: DncError) -> None:
        """Gives up all that was entered after the mark."""
        self._wake(self.ledger.withdraw(mark, error))
        self._stand_down()

    async def close(self) -> None:
        """Leaves the session as it is on the server."""
        pipe = self._leave()
        if pipe is not None:
            await pipe.close()
        self._fail_rest()

    def drop(self) -> None:
        """The same, waiting for nothing."""
        pipe = self._leave()
        if pipe is not None:
            pipe.close_soon()
        self._fail_rest()

    def _leave(self) -> Pipe | None:
        """Leaves the pipe; returns it if nobody uses it any more."""
        self._closed = True
        if self._recovery is not None:
            self._recovery.cancel()
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return None
        pipe.leave(self._session_id)
        return pipe if pipe.is_empty else None

    def _fail_rest(self) -> None:
        self._wake(self.ledger.withdraw_unsettled(ClientClosed(f"session {self._session_id!r} was closed")))

    # What a pipe tells.

    def receive(self, response: pb.StreamResponse, kind: str) -> None:
        ledger = self.ledger
        try:
            if kind == "chunk":
                chunk = response.chunk
                entry = ledger.answer(
                    chunk.request_id,
                    position=chunk.position,
                    durable_position=chunk.durable_position,
                    experience=chunk.experience,
                    outputs=chunk.outputs.data,
                    result=chunk,
                )
            elif kind == "reset":
                reset, session = response.reset, response.reset.session
                entry = ledger.answer(
                    reset.request_id,
                    position=session.position,
                    durable_position=session.durable_position,
                    experience=session.experience,
                    outputs=b"",
                    result=reset,
                )
            else:
                ledger.refuse(response.error.request_id, from_status(response.error.status))
                entry = None
        except DncError as error:
            self._give_up(error)
            return
        if entry is not None:
            self._latest_trouble = None
            self._wake([entry])
            if self._attempt is not None and not self._attempt.done():
                self._calls.contact.heard(self.route.target)
                self._attempt.set_result(None)
        trouble = ledger.trouble
        if trouble is not None:
            self._react(trouble)
        elif not self._closed:
            self.push()

    def lose(self, pipe: Pipe, error: DncError) -> None:
        if pipe is not self._pipe:
            return
        self._pipe = None
        self.route.go_on(away_from=pipe.target)
        if self.ledger.unsettled and is_silence(error):
            self._calls.contact.missed(pipe.target, error)
        self.ledger.resend()
        self._try_later(error)

    # What follows from trouble.

    def _react(self, refusal: DncError) -> None:
        """The first of what is in flight was refused."""
        try:
            if isinstance(refusal, StepGap):
                self._go_back(refusal)
                return
            if isinstance(refusal, SessionNotFound | SessionExpired):
                refusal = self._begin_again(refusal)
            elif isinstance(refusal, SessionMoved):
                refusal = self.route.follow(refusal)
                self._drop_pipe()
            elif isinstance(refusal, Draining):
                self.route.go_on(away_from=self.route.target)
                self._drop_pipe()
        except DncError as error:
            self._give_up(error)
            return
        if may_pass(refusal):
            self.ledger.resend()
        self._try_later(refusal)

    def _go_back(self, gap: StepGap) -> None:
        expected = gap.metadata.get("expected_position", "")
        if not expected.isdecimal() or not self.ledger.rewind(int(expected)):
            raise gap.with_note("what it lost is not kept by this client any more")
        self.push()

    def _begin_again(self, refusal: DncError) -> DncError:
        """The server knows nothing of the session, as after a power loss right after it was made: it is made again,
        and gets all that the first one got. Returns an error that passes by that.

        Raises the refusal if the session was ended, or if what it got is not all at hand.
        """
        if self._make_again is None or refusal.metadata.get("incarnation") == str(self._incarnation):
            raise refusal
        if not self.ledger.is_whole:
            raise refusal.with_note("the server lost it, and its beginning is not kept by this client any more")
        self._loss = Unavailable(f"the server lost session {self._session_id!r}, which is made again")
        return self._loss

    async def _make_lost(self) -> None:
        async with self._making:
            if self._loss is None:
                return  # somebody else was at it
            make_again = self._make_again() if self._make_again is not None else None
            if make_again is None:
                raise self._loss
            incarnation = await make_again()
            for entry in self.ledger:
                entry.request = copy.copy(entry.request)  # an earlier sending may still wait in the pipe
                _message(entry).incarnation = incarnation
            self.ledger.start_over()
            self._incarnation, self._loss = incarnation, None

    def _try_later(self, error: DncError) -> None:
        if not self.ledger.unsettled or self._closed:
            return
        if not may_pass(error):
            self._give_up(error)
            return
        self._latest_trouble = error
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover(error))
        elif self._attempt is not None and self._attempt.done():
            self._next_trouble = error
        elif self._attempt is not None:
            self._attempt.set_exception(error)

    async def _recover(self, error: DncError) -> None:
        trouble: DncError | None = error
        try:
            while trouble is not None:
                await persist(self._try_again, self._calls.retry, self._calls.contact.patience_s, trouble)
                trouble, self._next_trouble = self._next_trouble, None
        except DncError as last:
            self._recovery = None
            self._give_up(last)
        finally:
            if self._recovery is asyncio.current_task():
                self._recovery = None

    def _stand_down(self) -> None:
        """Nothing is left to be recovered for."""
        if self._recovery is not None and not self.ledger.unsettled:
            self._recovery.cancel()
            self._recovery = self._attempt = None

    async def _try_again(self) -> None:
        """Sends, and returns with the first answer."""
        if not self.ledger.unsettled:
            return
        if self._loss is not None:
            await self._make_lost()
        attempt = self._attempt = asyncio.get_running_loop().create_future()
        try:
            self.push()
            await attempt
        finally:
            if self._attempt is attempt:
                self._attempt = None

    def _give_up(self, error: DncError) -> None:
        """All that is unanswered fails, with what is known of it."""
        position = self.ledger.settled_position
        applied = self.ledger.applied_position
        if applied is None:
            rest = "what was sent after it may or may not have been applied"
        elif applied > position:
            rest = f"the server has applied what was sent up to position {applied}"
        else:
            rest = "nothing that was sent after it was applied"
        noted = error.with_note(
            f"session {self._session_id!r} was answered up to position {position}; {rest}", position=position
        )
        failed = self.ledger.withdraw_unsettled(noted)
        self._unreported = noted if failed else None
        self._wake(failed)
        self._stand_down()

    def _drop_pipe(self) -> None:
        """Leaves the pipe; if nobody else uses it, it ends."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.leave(self._session_id)
            if pipe.is_empty:
                pipe.abandon()

    def _wake(self, entries: list[Entry]) -> None:
        for entry in entries:
            for waiter in entry.waiters:
                if not waiter.done():
                    waiter.set_result(None)
        if entries:
            self._room.set()


def _message(entry: Entry) -> Any:
    """The chunk or the reset in an entry's request."""
    return entry.request.chunk if entry.timesteps else entry.request.reset
