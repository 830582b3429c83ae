"""What follows from trouble on a session's way: waiting, sending again, going back, making a lost session again."""

import asyncio
import copy
from abc import ABC, abstractmethod
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
    StoreUnavailable,
    Unavailable,
)
from dnc_serve.client.ledger import Ledger
from dnc_serve.client.transport import Route
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

MakeAgain = WeakMethod[Callable[[], Awaitable[int]]]
"""Makes a session that its server has lost, as new, and returns its incarnation. Weak: it is the handle's, and whoever
drops that wants no session."""


class Recovery(ABC):
    """Decides when a session's entries are sent again, and when they are given up; the base of what sends them.

    They are one object, not two that hold each other: a dropped handle's is gone at once, without a collection.
    """

    def __init__(
        self,
        session_id: str,
        incarnation: int,
        ledger: Ledger,
        route: Route,
        calls: Calls,
        make_again: MakeAgain | None,
    ) -> None:
        self.ledger = ledger
        self.route = route
        self._session_id = session_id
        self._incarnation = incarnation
        self._calls = calls
        self._make_again = make_again
        self._making = asyncio.Lock()
        self._backoff: Backoff | None = None  # from a failure to the next answer
        self._loss: DncError | None = None  # why the session is to be made again before anything is sent
        self._resumption: asyncio.Task[None] | None = None  # until it is done, nothing is sent

    @abstractmethod
    def push(self) -> None:
        """Sends what may be sent now. Raises ClientClosed."""

    @abstractmethod
    def _drop_stream(self) -> None:
        """Leaves the stream for another one."""

    @abstractmethod
    def _give_up(self, error: DncError) -> None:
        """All that is unanswered fails."""

    def _answered(self) -> None:
        """The trouble is over."""
        self._calls.heard(self.route.target)
        self._backoff = None

    def _stop(self) -> None:
        """Nothing is left to be sent again."""
        self._backoff = None
        if self._resumption is not None:
            self._resumption.cancel()
            self._resumption = None

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
                self._drop_stream()
            elif isinstance(refusal, Draining | StoreUnavailable):  # another may reach the store that they share
                self.route.go_on(away_from=self.route.target)
                self._drop_stream()
        except DncError as error:
            self._give_up(error)
            return
        if refusal.transient:
            self.ledger.resend()
        self._try_later(refusal)

    def _try_later(self, error: DncError) -> None:
        """Sends again after a pause, if there is something to be sent, and the error may pass."""
        if not self.ledger.unsettled:
            return
        self._backoff = self._backoff or Backoff(self._calls)
        if self._resumption is not None and error.transient:
            self._backoff.last = error
            return
        try:
            pause_s = self._backoff.pause_s(error)
        except DncError as last:
            self._give_up(last)
        else:
            self._resumption = asyncio.create_task(self._resume(pause_s))

    async def _resume(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        try:
            if self._loss is not None:
                await self._make_lost()
            self._resumption = None
            self.push()
        except DncError as error:
            self._resumption = None
            self._try_later(error)

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
                step = await calls.unary("Step", pb.StepRequest(chunk=entry.message), route, name)
                entry.check_again(step.result.outputs.data)
            else:
                await calls.unary("ResetSession", pb.ResetSessionRequest(reset=entry.message), route, name)

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
                entry.request = copy.copy(entry.request)  # an earlier sending may still wait in the stream
                entry.message.incarnation = incarnation
            self.ledger.start_over()
            self._incarnation, self._loss = incarnation, None
