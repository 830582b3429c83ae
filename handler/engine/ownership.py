"""Which sessions of a shared store this server owns, and until when.

A lease is counted from before the store was asked, on a clock that runs through suspends, and given up a margin before
its end: a server that was frozen knows when it wakes that its time is over. Even one that didn't would change nothing,
because the store refuses writes with an old token.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import cast

from dnc_serve.handler.engine.session import Session
from dnc_serve.handler.engine.session_table import SessionTable
from dnc_serve.handler.errors import Overtaken, ServeError, StoreUnavailable
from dnc_serve.handler.store.contract import Head, Lease, LeaseHeld, SharedStore, Store

logger = logging.getLogger(__name__)

# A lease is renewed so often in its life, and given up this share of it before its end.
RENEWALS = 4
MARGIN = 0.2


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Ownership:
    """Takes, renews and gives up the sessions of a shared store; with a store of its own a server owns all it knows.

    `discard(session, error)` ends a session here, refusing what waits for it.
    """

    def __init__(
        self,
        store: Store,
        table: SessionTable,
        lease_s: float,
        discard: Callable[[Session, ServeError], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._store = cast(SharedStore, store)  # another one is asked nothing
        self._table = table
        self._lease_s = lease_s
        self._discard = discard
        self._held: dict[Session, tuple[Lease, float]] = {}
        self._adopting: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._releasing: dict[str, asyncio.Future[None]] = {}
        self.shared = store.shared

    def check(self, session: Session) -> None:
        """Raises STORE_UNAVAILABLE if the lease has run out: nothing of the session may be shown any more."""
        if self.shared and self._has_run_out(session):
            self.lose(session)
            raise StoreUnavailable(f"the lease of session {session.session_id!r} ran out before it could be renewed")

    def holds(self, session: Session) -> bool:
        """Whether what is known of the session here is how it stands."""
        return not self.shared or (session in self._held and _now() < self._held[session][1])

    def _has_run_out(self, session: Session) -> bool:
        return session in self._held and _now() >= self._held[session][1]

    async def adopt(self, session_id: str, owner: str) -> None:
        """Takes the owner's session that the shared store knows, if no other server has it; then the table has it.

        Raises SESSION_MOVED with the server's address, or STORE_UNAVAILABLE. Does nothing for an id that is unknown, or
        is another owner's.
        """
        if not self.shared:
            return
        if (known := self._table.find(session_id)) is not None:
            if not self._has_run_out(known):
                return
            self.lose(known)  # it may have gone on elsewhere, or ended
        asked = session_id, owner
        if (adopting := self._adopting.get(asked)) is None:
            adopting = self._adopting[asked] = asyncio.ensure_future(self._adopt(session_id, owner))
            adopting.add_done_callback(lambda _: self._adopting.pop(asked))
        await asyncio.shield(adopting)

    async def _adopt(self, session_id: str, owner: str) -> None:
        head = await self.head(session_id)
        if head is None or head.owner != owner or head.ended:
            if head is not None and head.ended and self._table.find(session_id) is None:
                self._table.register(head)
            return
        try:
            lease, until = await self._acquire(session_id)
        except LeaseHeld as held:
            raise _moved(held) from None
        # It may have gone on, or ended, before the lease was ours.
        head = await self.head(session_id)
        session = self._table.find(session_id)  # perhaps it was begun here meanwhile
        if session is None:
            if head is None or head.owner != owner or head.ended:
                self._release([lease])
                return
            session = self._table.register(head)
            assert session is not None
        self._held[session] = lease, until

    async def begin(self, session: Session, at_most: int | None) -> int:
        """Takes the lease of a session that is about to be made, and a place among its owner's sessions; returns how
        many others there are, and if these are more than `at_most`, it has no place.

        Raises SESSION_MOVED for one that the owner has at another server, SESSION_EXISTS, or NOT_READY where something
        begins or ends under the id just now.
        """
        session_id, owner = session.session_id, session.owner
        if _is_others(await self.head(session_id), owner):
            raise _exists(session_id)
        try:
            lease, until = await self._acquire(session_id)
        except LeaseHeld as held:
            head = await self.head(session_id)
            if _is_others(head, owner):
                raise _exists(session_id) from None
            if head is not None and not head.ended:
                raise _moved(held) from None
            raise ServeError(
                "NOT_READY", f"session {session_id!r} begins or ends at another server just now", retry_after_s=0.2
            ) from None
        others = await self._loop.run_in_executor(None, self._store.reserve, session_id, owner, at_most)
        head = await self.head(session_id)
        present = self._table.find(session_id)  # perhaps another call was faster
        if present is None and _is_others(head, owner):
            self._release([lease])
            raise _exists(session_id)
        if present is None and head is not None and not head.ended:
            present = self._table.register(head)
        self._held[present or session] = lease, until
        if present is not None:
            raise _exists(session_id)
        return others

    async def count_of(self, owner: str, at_most: int | None) -> int:
        """How many sessions of the owner's the store has, whoever serves them."""
        return await self._loop.run_in_executor(None, self._store.count_of, owner, at_most)

    async def head(self, session_id: str) -> Head | None:
        """What the store knows of a session, whoever has it."""
        return await self._loop.run_in_executor(None, self._store.head, session_id)

    async def owned(self, owner: str, after: str, prefix: str, size: int) -> tuple[list[Head], str]:
        """A page of the owner's sessions, whoever has them, and the last id if there are more."""
        return await self._loop.run_in_executor(None, self._store.owned, owner, after, prefix, size)

    async def overdue(self, used_before: float, born_before: float | None, at_most: int) -> list[tuple[Head, str]]:
        """Some sessions that no other server has and whose time is up."""
        return await self._loop.run_in_executor(None, self._store.overdue, used_before, born_before, at_most)

    async def _acquire(self, session_id: str) -> tuple[Lease, float]:
        if (releasing := self._releasing.get(session_id)) is not None:
            await asyncio.shield(releasing)  # it would take the new lease with it
        started = _now()
        lease = await self._loop.run_in_executor(None, self._store.acquire, session_id)
        return lease, started + lease.ttl_s * (1 - MARGIN)

    async def run(self) -> None:
        """Renews until it is cancelled."""
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS)
            try:
                await self._renew()
            except StoreUnavailable as error:
                logger.warning("leases could not be renewed: %s", error)
            except Exception:  # without renewals all sessions would be lost, one by one
                logger.exception("leases could not be renewed")

    async def _renew(self) -> None:
        sessions = list(self._held)
        if not sessions:
            return
        started = _now()
        leases = [self._held[session][0] for session in sessions]
        renewed = await self._loop.run_in_executor(None, self._store.renew, leases)
        for session, lease in zip(sessions, renewed, strict=True):
            if session not in self._held:
                continue
            if lease is None:
                self.lose(session)
            else:
                self._held[session] = lease, started + lease.ttl_s * (1 - MARGIN)

    def lose(self, session: Session) -> None:
        """Forgets a session that belongs to another server now; its callers are told the owner when they ask again."""
        self._held.pop(session, None)
        self._table.remove(session)
        self._discard(session, Overtaken(session.session_id))

    def give_up(self, sessions: list[Session]) -> "asyncio.Future[None]":
        """Leaves sessions, whose states are in the store, to whoever is asked for them next.

        They are known here no more when this returns, so that no work can come for them; the future tells when other
        servers may have them.
        """
        leases = [self._held[session][0] for session in sessions if session in self._held]
        for session in sessions:
            self.lose(session)
        return self._release(leases)

    def hand_over(self, session: Session, to: "Ownership", moved: Session) -> None:
        """The session is another version's from now on, with its lease."""
        held = self._held.pop(session, None)
        if held is not None:
            to._held[moved] = held

    def ended(self, session: Session) -> None:
        """The session was deleted, or never came to be: its lease is of no use."""
        held = self._held.pop(session, None)
        if held is not None:
            self._release([held[0]])

    def _release(self, leases: list[Lease]) -> "asyncio.Future[None]":
        async def release() -> None:
            try:
                await self._loop.run_in_executor(None, self._store.release, leases)
            except StoreUnavailable as error:
                logger.warning("leases were not released, and will run out: %s", error)
            finally:
                for lease in leases:
                    self._releasing.pop(lease.session_id, None)

        releasing = asyncio.ensure_future(release())
        self._releasing.update({lease.session_id: releasing for lease in leases})
        return releasing


def _is_others(head: Head | None, owner: str) -> bool:
    """Whether a living session belongs to somebody else."""
    return head is not None and not head.ended and head.owner != owner


def _exists(session_id: str) -> ServeError:
    return ServeError("SESSION_EXISTS", f"session {session_id!r} exists already", session_id=session_id)


def _moved(held: LeaseHeld) -> ServeError:
    return ServeError(
        "SESSION_MOVED",
        f"session {held.session_id!r} is served by {held.owner}",
        owner=held.owner,
        lease_seconds=round(held.rest_s, 3),
    )
