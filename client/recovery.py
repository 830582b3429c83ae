"""What follows from trouble on a session's way: waiting, sending again, going back, making a lost session again."""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from weakref import WeakMethod

from dnc_serve.client.calls import Backoff, Calls
from dnc_serve.client.errors import (
    DncError,
    Draining,
    SessionExpired,
    SessionMoved,
    SessionNotFound,
    StepGap,
    Unavailable,
)
from dnc_serve.client.ledger import Ledger
from dnc_serve.client.transport import Route
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

MakeAgain = WeakMethod[Callable[[], Awaitable[int]]]
"""Makes a session that its server has lost, as new, and returns its incarnation. Weak: it is the handle's, and whoever
drops that wants no session."""


class Recovery:
    """Decides when a session's entries are sent again, and when they are given up.

    `push` sends what may be sent, `leave_stream` has that done on another stream, `give_up` fails all that is
    unanswered.
    """

    def __init__(
        self,
        session_id: str,
        incarnation: int,
        ledger: Ledger,
        route: Route,
        calls: Calls,
        make_again: MakeAgain | None,
        *,
        push: Callable[[], None],
        leave_stream: Callable[[], None],
        give_up: Callable[[DncError], None],
    ) -> None:
        self.backoff: Backoff | None = None  # from a failure to the next answer
        self.loss: DncError | None = None  # why the session is to be made again before anything is sent
        self.resumption: asyncio.Task[None] | None = None  # until it is done, nothing is sent
        self._session_id = session_id
        self._incarnation = incarnation
        self._ledger = ledger
        self._route = route
        self._calls = calls
        self._make_again = make_again
        self._making = asyncio.Lock()
        self._push = push
        self._leave_stream = leave_stream
        self._give_up = give_up

    def answered(self) -> None:
        """The trouble is over."""
        self._calls.heard(self._route.target)
        self.backoff = None

    def stop(self) -> None:
        """Nothing is left to be sent again."""
        self.backoff = None
        if self.resumption is not None:
            self.resumption.cancel()
            self.resumption = None

    def react(self, refusal: DncError) -> None:
        """The first of what is in flight was refused."""
        try:
            if isinstance(refusal, StepGap):
                self._go_back(refusal)
                return
            if isinstance(refusal, SessionNotFound | SessionExpired):
                refusal = self._begin_again(refusal)
            elif isinstance(refusal, SessionMoved):
                refusal = self._route.follow(refusal)
                self._leave_stream()
            elif isinstance(refusal, Draining):
                self._route.go_on(away_from=self._route.target)
                self._leave_stream()
        except DncError as error:
            self._give_up(error)
            return
        if refusal.transient:
            self._ledger.resend()
        self.try_later(refusal)

    def try_later(self, error: DncError) -> None:
        """Sends again after a pause, if there is something to be sent, and the error may pass."""
        if not self._ledger.unsettled:
            return
        self.backoff = self.backoff or Backoff(self._calls)
        if self.resumption is not None and error.transient:
            self.backoff.last = error
            return
        try:
            pause_s = self.backoff.pause_s(error)
        except DncError as last:
            self._give_up(last)
        else:
            self.resumption = asyncio.create_task(self._resume(pause_s))

    async def _resume(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        try:
            if self.loss is not None:
                await self._make_lost()
            self.resumption = None
            self._push()
        except DncError as error:
            self.resumption = None
            self.try_later(error)

    async def restore(self) -> None:
        """Gives back to a server what it has lost of the answered, as in a power loss, as far as that is kept.

        Raises SessionNotFound if the session is lost or was ended, and can't be made again.
        """
        calls, route, name = self._calls, self._route, self._session_id
        try:
            stands = (await calls.unary("GetSession", pb.GetSessionRequest(session_id=name), route, name)).session
            if stands.incarnation != self._incarnation:
                return  # somebody else has made another one
            lost = self._ledger.kept_after(stands.position, stands.experience)
        except SessionNotFound as refusal:
            self._begin_again(refusal)
            await self._make_lost()
            lost = self._ledger.kept_after(0, 0)
        for entry in lost:
            if entry.timesteps:
                step = await calls.unary("Step", pb.StepRequest(chunk=entry.message), route, name)
                entry.check_again(step.result.outputs.data)
            else:
                await calls.unary("ResetSession", pb.ResetSessionRequest(reset=entry.message), route, name)

    def _go_back(self, gap: StepGap) -> None:
        expected = gap.metadata.get("expected_position", "")
        if not expected.isdecimal() or not self._ledger.rewind(int(expected)):
            raise gap.with_note("what it lost is not kept by this client any more")
        self._push()

    def _begin_again(self, refusal: DncError) -> DncError:
        """The server knows nothing of the session, as after a power loss right after it was made: it is made again,
        and gets all that the first one got. Returns an error that passes by that.

        Raises the refusal if the session was ended, or if what it got is not all at hand.
        """
        if self._make_again is None or refusal.metadata.get("incarnation") == str(self._incarnation):
            raise refusal
        if not self._ledger.is_whole:
            raise refusal.with_note("the server lost it, and its beginning is not kept by this client any more")
        self.loss = Unavailable(f"the server lost session {self._session_id!r}, which is made again")
        return self.loss

    async def _make_lost(self) -> None:
        async with self._making:
            if self.loss is None:
                return  # somebody else was at it
            make_again = self._make_again() if self._make_again is not None else None
            if make_again is None:
                raise self.loss
            incarnation = await make_again()
            for entry in self._ledger:
                entry.request = copy.copy(entry.request)  # an earlier sending may still wait in the stream
                entry.message.incarnation = incarnation
            self._ledger.start_over()
            self._incarnation, self.loss = incarnation, None
