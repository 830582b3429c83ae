"""Where states are: device slots → host memory → store, the least recently used moving down.

Limits are in slots and in bytes. A state that work runs on is never moved, and one that
work waits for goes no further than to host memory.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from dnc_serve.handler.api.arrays import Float32
from dnc_serve.handler.engine.host_rows import HostRows
from dnc_serve.handler.engine.journal import Outcomes
from dnc_serve.handler.engine.session import Session
from dnc_serve.handler.engine.slab import Slab
from dnc_serve.handler.errors import ServeError, StoreUnavailable
from dnc_serve.handler.metrics import Metrics

# After a store was found unavailable, memory is not offered to it again so soon.
RETRY_S = 1.0
# So many states over the budget don't wait for the end of the turn.
MOST_IN_EXCESS = 64

Store = Callable[[list[Session], Callable[[Outcomes], None]], None]
Wake = Callable[[Session], None]
Later = Callable[[Callable[[], None]], object]


class Tiers:
    """Moves states between the slab, host memory and the store.

    `store(sessions, then)` writes snapshots of sessions in host memory, and calls `then` with one error or None for
    each; `wake(session)` is called for each of them after that, because work may have come in the meantime. With
    `later(call)` a call comes right after this turn of the loop: what leaves memory in one turn goes into one write.
    """

    def __init__(
        self,
        slab: Slab,
        slots: int,
        host_bytes: int,
        row_bytes: int,
        store: Store,
        wake: Wake,
        later: Later,
        metrics: Metrics,
        *,
        journaled: bool,
    ) -> None:
        self.slab = slab
        self._slots = slots
        self._host_limit = host_bytes
        self._row_bytes = row_bytes
        self._store = store
        self._wake = wake
        self._later = later
        self._metrics = metrics
        self._journaled = journaled  # replies of sessions in the store can be had from there
        # Least recently used first.
        self._in_slots: OrderedDict[Session, None] = OrderedDict()
        self._in_host: OrderedDict[Session, None] = OrderedDict()
        self._host_rows = HostRows(host_bytes // row_bytes, row_bytes // 4)
        self._storing = 0
        self._shrink_pending = False
        self._retry_at = 0.0  # time.monotonic()

    @property
    def slots_used(self) -> int:
        return len(self._in_slots)

    @property
    def host_sessions(self) -> int:
        return len(self._in_host)

    @property
    def host_used_bytes(self) -> int:
        return len(self._in_host) * self._row_bytes

    def admit(self, session: Session, state: Float32 | None) -> None:
        """A state has come from the store, or is new (None: zeros): it goes to a slot, or to host memory if all slots
        are in use."""
        if self._has_room():
            self._place(session, state)
        else:
            self._keep_in_host(session, state)

    def lift(self, session: Session) -> bool:
        """Brings a session from host memory to a slot; False if every slot is in use by running work."""
        if session.row is not None:
            return True
        if not self._has_room():
            return False
        self._place(session, session.host)
        self._leave_host(session)
        return True

    def swap(self, session: Session, row: int) -> None:
        """Commits: the session's state is the one in `row` from now on."""
        assert session.row is not None
        self.slab.give(session.row)
        session.row = row
        self._in_slots.move_to_end(session)

    def read(self, session: Session) -> Float32:
        """A copy of the state [S] of a session that is in a slot or in host memory."""
        if session.row is not None:
            return self.slab.read(session.row)
        assert session.host is not None
        return session.host.copy()

    def write(self, session: Session, state: Float32 | None) -> None:
        """Replaces the state of a session that is in a slot or in host memory."""
        if session.row is not None:
            self.slab.write(session.row, state)
        else:
            assert session.host is not None
            session.host[:] = 0.0 if state is None else state

    def forget(self, session: Session) -> None:
        """The session's state is not needed any more here."""
        if session.row is not None:
            self.slab.give(session.row)
            del self._in_slots[session]
            session.row = None
        elif session.host is not None:
            self._leave_host(session)

    def shrink(self) -> None:
        """Moves states from host memory to the store until the host budget holds, many in one write.

        One that the store refuses stays, and the next ones are tried before it.
        """
        self._shrink_pending = False
        excess = self._excess
        if excess <= 0 or time.monotonic() < self._retry_at:
            return
        # A little more than needed, so that the next ones find room without a write of their own.
        wanted = excess + min(64, len(self._in_host) // 8)
        leaving = list(islice((session for session in self._in_host if session.idle), wanted))
        if not leaving:
            return
        for session in leaving:
            session.busy = True
        self._storing += len(leaving)

        def stored(outcomes: Outcomes) -> None:
            self._storing -= len(leaving)
            for session, error in zip(leaving, outcomes, strict=True):
                session.busy = False
                if error is not None:
                    self._stays(session, error)
                elif session.host is not None and not session.fifo:
                    self._leaves(session)
                self._wake(session)

        self._store(leaving, stored)

    def _stays(self, session: Session, error: ServeError) -> None:
        """The store did not take the session."""
        if isinstance(error, StoreUnavailable):
            self._retry_at = time.monotonic() + RETRY_S
        if session in self._in_host:  # else it ended meanwhile, or belongs to another server now
            self._in_host.move_to_end(session)

    def _leaves(self, session: Session) -> None:
        """The store has all that memory has."""
        self.forget(session)
        if self._journaled:
            session.replies.clear()
        self._metrics.evictions.labels("host").inc()

    @property
    def _excess(self) -> int:
        """By how many states host memory is over its budget, without those that are being written."""
        return len(self._in_host) - self._storing - self._host_limit // self._row_bytes

    def _leave_host(self, session: Session) -> None:
        self._host_rows.give(session.host_row)
        session.host = None
        del self._in_host[session]

    def _keep_in_host(self, session: Session, state: Float32 | None) -> None:
        session.host, session.host_row = self._host_rows.keep(state)
        self._in_host[session] = None
        if self._excess >= MOST_IN_EXCESS:
            self.shrink()
        elif self._excess > 0 and not self._shrink_pending:
            self._shrink_pending = True
            self._later(self.shrink)

    def _has_room(self) -> bool:
        """Whether a slot is free, after moving down the least recently used session if need be."""
        if len(self._in_slots) < self._slots:
            return True
        for session in self._in_slots:
            if not (session.running or session.busy):
                state = self.slab.read(session.row)  # type: ignore[arg-type]
                self.forget(session)
                self._keep_in_host(session, state)
                self._metrics.evictions.labels("slot").inc()
                return True
        return False

    def _place(self, session: Session, state: Float32 | None) -> None:
        session.row = self.slab.take()
        self.slab.write(session.row, state)
        self._in_slots[session] = None
