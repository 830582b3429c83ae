"""Write-ahead: what was applied is written before anybody is told, in the durability that the server promises.

| mode  | `then` is called when the mutations are       |
|-------|-----------------------------------------------|
| off   | nowhere                                       |
| async | handed to the operating system; synced within 20 milliseconds or so |
| sync  | synced, many in one group commit              |

A local store is written in the loop's own turn for `async`: a group costs less than waking a thread. Everything that
waits for a disk or for a network runs in the journal's thread.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dnc_serve.handler.engine.sessions import Session
from dnc_serve.handler.errors import Overtaken, ServeError, StoreUnavailable
from dnc_serve.handler.journal.stores.contract import Fenced, Mutation, Rejected, Store, session_of
from dnc_serve.handler.metrics import Metrics

logger = logging.getLogger(__name__)

Outcomes = list[ServeError | None]
Then = Callable[[Outcomes], None]
Marks = Sequence[tuple[Session, int]]


@dataclass(slots=True)
class _Group:
    mutations: Sequence[Mutation]
    then: Then
    marks: Marks
    started: float


class Journal:
    """Writes mutations in order, and tells when they are as safe as promised.

    `marks` are (session, position) pairs, one for each of the first mutations: once such a one is synced, and was not
    refused, the session's `durable_position` is that.
    """

    def __init__(
        self,
        store: Store,
        durability: str,
        sync_interval_s: float,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
    ) -> None:
        self.store = store
        self.durability = durability
        self._loop = loop
        self._metrics = metrics
        self._sync_interval_s = sync_interval_s
        # A store on the network is never waited for in the loop.
        self._inline = durability != "sync" and not store.shared
        self._groups: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._unsynced: deque[tuple[int, Marks]] = deque()
        self._ticket = 0
        self._dirty = threading.Event()
        self._closing = False
        target = self._sync_for_ever if self._inline else self._write_for_ever
        self._thread = threading.Thread(target=target, name="dnc-journal", daemon=True)
        self._thread.start()

    @property
    def volatile(self) -> bool:
        """Whether operations are recorded nowhere: the store holds only states that found no room in memory."""
        return self.durability == "off"

    def write(self, mutations: Sequence[Mutation], then: Then, marks: Marks = ()) -> None:
        """Writes the group; `then` gets one error or None for each mutation, here or in a later turn of the loop."""
        started = time.perf_counter()
        if not self._inline:
            self._groups.put(_Group(mutations, then, marks, started))
            return
        try:
            outcomes = self._commit(mutations)
        except ServeError as error:
            self._metrics.store_up.set(0)
            then([error] * len(mutations))
            return
        self._ticket += 1
        if marks := _written(marks, outcomes):
            self._unsynced.append((self._ticket, marks))
        if self.durability != "off":
            self._dirty.set()
        self._metrics.store_up.set(1)
        self._metrics.journal_commit.observe(time.perf_counter() - started)
        then(outcomes)

    async def flush(self) -> None:
        """Returns when all that was written before is synced; raises STORE_UNAVAILABLE if that can't be done."""
        if self._inline:
            await self._loop.run_in_executor(None, self.store.sync)
            return
        done: asyncio.Future[Outcomes] = self._loop.create_future()
        self._groups.put(_Group((), done.set_result, (), time.perf_counter()))
        for error in await done:
            if error is not None:
                raise error

    def close(self) -> None:
        """Ends the journal's thread; call `flush` before."""
        self._closing = True
        self._dirty.set()
        self._groups.put(None)
        self._thread.join(timeout=10)

    def _sync_for_ever(self) -> None:
        while not self._closing:
            self._dirty.wait()
            self._dirty.clear()
            ticket = self._ticket
            try:
                self.store.sync()
            except StoreUnavailable as error:
                logger.error("the store can't be synced: %s", error)
                self._loop.call_soon_threadsafe(self._metrics.store_up.set, 0)
                self._dirty.set()
                time.sleep(1.0)
                continue
            if not self._closing:
                self._loop.call_soon_threadsafe(self._synced, ticket)
                time.sleep(self._sync_interval_s)

    def _synced(self, ticket: int) -> None:
        while self._unsynced and self._unsynced[0][0] <= ticket:
            for session, position in self._unsynced.popleft()[1]:
                session.durable_position = position

    def _write_for_ever(self) -> None:
        while (group := self._groups.get()) is not None:
            groups = [group]
            # All that came while the last group was being written goes into one commit.
            while not self._groups.empty():
                group = self._groups.get()
                if group is None:
                    self._groups.put(None)
                    break
                groups.append(group)
            mutations = [mutation for group in groups for mutation in group.mutations]
            try:
                outcomes = self._commit(mutations) if mutations else []
                self.store.sync()
                error = None
            except ServeError as refused:
                outcomes, error = [refused] * len(mutations), refused
            self._loop.call_soon_threadsafe(self._deliver, groups, outcomes, error)

    def _deliver(self, groups: list[_Group], outcomes: list[ServeError | None], error: ServeError | None) -> None:
        self._metrics.store_up.set(0 if error else 1)
        start = 0
        for group in groups:
            end = start + len(group.mutations)
            if error is None:
                self._metrics.journal_commit.observe(time.perf_counter() - group.started)
                for session, position in _written(group.marks, outcomes[start:end]):
                    session.durable_position = position
            try:
                group.then(outcomes[start:end] if group.mutations else [error])
            except Exception:  # a mistake in what one group leads to must not keep the others from theirs
                logger.exception("what follows a write failed")
            start = end

    def _commit(self, mutations: Sequence[Mutation]) -> Outcomes:
        try:
            outcomes = self.store.commit(mutations)
        except ServeError:
            raise
        except Exception as exc:  # whatever it was, everybody is to be answered
            logger.exception("a write failed")
            raise ServeError("INTERNAL", f"the store failed: {exc}") from exc
        return [
            None if outcome is None else self._refusal(mutation, outcome)
            for mutation, outcome in zip(mutations, outcomes, strict=True)
        ]

    def _refusal(self, mutation: Mutation, outcome: Fenced | Rejected) -> ServeError:
        """What a refused write means: in a shared store, that another server has the session; in our own, a mistake."""
        if self.store.shared and isinstance(outcome, Fenced):
            return Overtaken(session_of(mutation))
        return ServeError("INTERNAL", str(outcome))


def _written(marks: Marks, outcomes: Outcomes) -> Marks:
    """Those whose mutation was not refused."""
    return [mark for mark, refusal in zip(marks, outcomes, strict=False) if refusal is None]
