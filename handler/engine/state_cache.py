"""Where states are: device slots → host memory → store, the least recently used moving down.

Limits are in slots and in bytes. A state that a chunk runs on is never moved, and one that a request waits for goes no
further than to host memory.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

import numpy as np

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.engine.journal import Outcomes
from dnc_serve.handler.engine.observer import Observer
from dnc_serve.handler.engine.session import Session, Status
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.handler.errors import ServeError, StoreUnavailable
from dnc_serve.model.rows import WORD, RowLayout

# After a store was found unavailable, memory is not offered to it again so soon.
RETRY_S = 1.0
# So many states over the budget don't wait for the end of the loop's turn.
MOST_IN_EXCESS = 64
# So many at once, and a little more than needed, so that the next ones find room without a write of their own.
SPARE_STATES = 64

StoreStates = Callable[[list[Session], Callable[[Outcomes], None]], None]


class StateCache:
    """Moves states between device slots, host memory and the store.

    `store_states(sessions, then)` writes snapshots of sessions in host memory, and calls `then` with one error or None
    for each; `on_free(session)` is called for each of them after that, because requests may have come meanwhile.
    """

    def __init__(
        self,
        rows: StateRows,
        *,
        slots: int,
        host_bytes: int,
        layout: RowLayout,
        store_states: StoreStates,
        on_free: Callable[[Session], None],
        observer: Observer,
        keeps_replies: bool,
    ) -> None:
        self.rows = rows
        self._max_slots = slots
        self.layout = layout
        self._max_host = host_bytes // (WORD * layout.size)
        self._store_states = store_states
        self._on_free = on_free
        self._observer = observer
        self._keeps_replies = keeps_replies  # because the store has none
        # Least recently used first.
        self._in_slots: OrderedDict[Session, None] = OrderedDict()
        self._in_host: OrderedDict[Session, None] = OrderedDict()
        self._spare: list[Float32] = []  # memory of states that left: all are alike, and no holes grow between them
        self._storing = 0
        self._shrink_pending = False
        self._retry_at = 0.0  # time.monotonic()

    @property
    def slots_used(self) -> int:
        return len(self._in_slots)

    @property
    def host_used(self) -> int:
        return len(self._in_host)

    def admit(self, session: Session, state: Float32 | None) -> None:
        """A state has come from the store, or is new (None): it goes to a slot, or to host memory if all slots
        are in use."""
        if self._find_slot():
            self._place(session, state)
        else:
            self._keep_in_host(session, state)

    def promote(self, session: Session) -> bool:
        """Brings a session from host memory to a slot; False if every slot is in use by running chunks."""
        if session.row is not None:
            return True
        if not self._find_slot():
            return False
        self._place(session, session.host_state)
        self._leave_host(session)
        return True

    def swap(self, session: Session, row: int) -> None:
        """Commits: the session's state is the one in `row` from now on."""
        assert session.row is not None
        self.rows.give(session.row)
        session.row = row
        self._in_slots.move_to_end(session)

    def read(self, session: Session) -> Float32:
        """A copy of the state [S] of a session that is in a slot or in host memory."""
        if session.row is not None:
            return self.rows.read(session.row)
        assert session.host_state is not None
        return session.host_state.copy()

    def reset(self, session: Session, scope: str) -> None:
        """Makes the state of a session in memory new: of scope "all", or the "experience" alone.

        One that is in the store is replaced.
        """
        if session.row is not None:
            self.rows.reset(session.row, scope)
        elif session.host_state is not None:
            start = self.layout.start_of(scope)
            session.host_state[start:] = self.layout.initial[start:]
        else:
            assert scope == "all"
            self.admit(session, None)

    def forget(self, session: Session) -> None:
        """The session's state is not needed any more here."""
        if session.row is not None:
            self.rows.give(session.row)
            del self._in_slots[session]
            session.row = None
        elif session.host_state is not None:
            self._leave_host(session)

    def _find_slot(self) -> bool:
        """Whether a slot is free, after moving down the least recently used session if need be."""
        if len(self._in_slots) < self._max_slots:
            return True
        for session in self._in_slots:
            if session.status not in (Status.RUNNING, Status.ENDING, Status.WAITING):
                state = self.read(session)
                self.forget(session)
                self._keep_in_host(session, state)
                self._observer.evicted("slot")
                return True
        return False

    def _place(self, session: Session, state: Float32 | None) -> None:
        session.row = self.rows.take()
        self.rows.write(session.row, state)
        self._in_slots[session] = None

    def _keep_in_host(self, session: Session, state: Float32 | None) -> None:
        memory = self._spare.pop() if self._spare else np.empty(self.layout.size, np.float32)
        memory[:] = self.layout.initial if state is None else state
        session.host_state = memory
        self._in_host[session] = None
        if self._excess >= MOST_IN_EXCESS:
            self.shrink()
        elif self._excess > 0 and not self._shrink_pending:
            self._shrink_pending = True
            asyncio.get_running_loop().call_soon(self.shrink)  # what leaves memory in one turn goes into one write

    def _leave_host(self, session: Session) -> None:
        assert session.host_state is not None
        if len(self._spare) + len(self._in_host) <= self._max_host:
            self._spare.append(session.host_state)
        session.host_state = None
        del self._in_host[session]

    @property
    def _excess(self) -> int:
        """By how many states host memory is over its budget, without those that are being written."""
        return len(self._in_host) - self._storing - self._max_host

    def shrink(self) -> None:
        """Moves states from host memory to the store until the host budget holds, many in one write.

        One that the store refuses stays, and the next ones are tried before it.
        """
        self._shrink_pending = False
        excess = self._excess
        if excess <= 0 or time.monotonic() < self._retry_at:
            return
        wanted = excess + min(SPARE_STATES, len(self._in_host) // 8)
        leaving = list(islice((one for one in self._in_host if one.status is Status.IDLE), wanted))
        if not leaving:
            return
        for session in leaving:
            session.become(Status.WAITING)
        self._storing += len(leaving)

        def stored(outcomes: Outcomes) -> None:
            self._storing -= len(leaving)
            for session, error in zip(leaving, outcomes, strict=True):
                if error is not None:
                    self._stays(session, error)
                elif session.host_state is not None and not session.queue:
                    self._leaves(session)
                self._on_free(session)

        self._store_states(leaving, stored)

    def _stays(self, session: Session, error: ServeError) -> None:
        """The store did not take the session."""
        if isinstance(error, StoreUnavailable):
            self._retry_at = time.monotonic() + RETRY_S
        if session in self._in_host:  # else it ended meanwhile, or belongs to another server now
            self._in_host.move_to_end(session)

    def _leaves(self, session: Session) -> None:
        """The store has all that memory has."""
        self.forget(session)
        if not self._keeps_replies:
            session.replies.clear()
        self._observer.evicted("host")
