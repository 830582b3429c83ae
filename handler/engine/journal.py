"""Write-ahead: what was applied is written before anybody is told, in the durability that the server promises.

| mode  | `written` is called when the mutations are       |
|-------|--------------------------------------------------|
| off   | handed to the operating system; only what leaves memory is written at all |
| async | handed to the operating system; synced within 20 milliseconds or so, by a shared store's replicas as well |
| sync  | synced, many in one group commit                 |

A local store is written in the loop's own turn for `async`: a group costs less than waking a thread. Everything that
waits for a disk or for a network runs in the journal's thread.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dnc_serve.handler.engine.observer import Observer
from dnc_serve.handler.errors import Overtaken, ServeError, StoreUnavailable
from dnc_serve.handler.store.contract import Fenced, Mutation, Rejected, Store, session_of

logger = logging.getLogger(__name__)

# After a sync that failed.
RETRY_S = 1.0

Outcomes = list[ServeError | None]
Written = Callable[[Outcomes], None]
Synced = Callable[[], None]


@dataclass(slots=True)
class _Group:
    mutations: Sequence[Mutation]
    written: Written
    synced: Synced | None
    started: float


class Journal:
    """Writes groups of mutations in order, and tells when they are as safe as promised."""

    def __init__(self, store: Store, durability: str, sync_interval_s: float, observer: Observer) -> None:
        self.store = store
        self.durability = durability
        # Operations are recorded nowhere: the store holds only states that found no room in memory.
        self.volatile = durability == "off"
        self._loop = asyncio.get_running_loop()
        self._observer = observer
        self._sync_interval_s = sync_interval_s
        # A store on the network is never waited for in the loop.
        self._inline = durability != "sync" and not store.shared
        self._groups: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._unsynced: deque[tuple[int, Synced]] = deque()
        self._ticket = 0  # of the latest inline group
        self._dirty = threading.Event()
        self._closing = False
        target = self._sync_for_ever if self._inline else self._write_for_ever
        self._thread = threading.Thread(target=target, name="dnc-journal", daemon=True)
        self._thread.start()

    def write(self, mutations: Sequence[Mutation], written: Written, synced: Synced | None = None) -> None:
        """Writes the group. `written` gets one error or None for each mutation, here or in a later turn of the loop;
        `synced` is called once the group survives a power loss, after `written`."""
        started = time.perf_counter()
        if not self._inline:
            self._groups.put(_Group(mutations, written, synced, started))
            return
        try:
            outcomes = self._commit(mutations)
        except ServeError as error:
            self._observer.store_failed()
            written([error] * len(mutations))
            return
        if self.durability != "off":
            self._ticket += 1
            if synced is not None:
                self._unsynced.append((self._ticket, synced))
            self._dirty.set()
        self._observer.wrote(time.perf_counter() - started)
        written(outcomes)

    async def flush(self) -> None:
        """Returns when all that was written before is synced; raises STORE_UNAVAILABLE where it could not be."""
        if self._inline:
            await self._loop.run_in_executor(None, self.store.sync)
            return
        done: asyncio.Future[None] = self._loop.create_future()

        def written(outcomes: Outcomes) -> None:
            done.set_exception(outcomes[0]) if outcomes and outcomes[0] is not None else done.set_result(None)

        self._groups.put(_Group((), written, None, time.perf_counter()))
        await done

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
                self._sync()
            except ServeError as error:
                logger.error("the store can't be synced: %s", error)
                self._loop.call_soon_threadsafe(self._observer.store_failed)
                self._dirty.set()
                time.sleep(RETRY_S)
                continue
            if not self._closing:
                self._loop.call_soon_threadsafe(self._tell_synced, ticket)
                time.sleep(self._sync_interval_s)

    def _tell_synced(self, ticket: int) -> None:
        while self._unsynced and self._unsynced[0][0] <= ticket:
            self._unsynced.popleft()[1]()

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
            changes = [group for group in groups if group.mutations]
            outcomes: Outcomes = []
            error: ServeError | None = None
            waiting = groups
            try:
                if changes:
                    outcomes = self._commit([mutation for group in changes for mutation in group.mutations])
                if self.durability != "sync":
                    self._loop.call_soon_threadsafe(self._deliver, changes, outcomes, None)
                    waiting = [group for group in groups if not group.mutations]
                self._sync()
            except ServeError as refused:
                error = refused
                if waiting is not groups:  # the next commit of each session that it takes vouches for this one
                    logger.error("the store can't be synced: %s", error)
            self._loop.call_soon_threadsafe(self._deliver, waiting, outcomes, error)
            if error is None:
                self._loop.call_soon_threadsafe(self._settle, changes)

    def _deliver(self, groups: list[_Group], outcomes: Outcomes, error: ServeError | None) -> None:
        if error is not None:
            self._observer.store_failed()
        start = 0
        for group in groups:
            end = start + len(group.mutations)
            with _apart():
                if error is not None:
                    group.written([error] * max(1, len(group.mutations)))
                else:
                    self._observer.wrote(time.perf_counter() - group.started)
                    group.written(outcomes[start:end])
            start = end

    def _settle(self, groups: list[_Group]) -> None:
        for group in groups:
            if group.synced is not None:
                with _apart():
                    group.synced()

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

    def _sync(self) -> None:
        try:
            self.store.sync()
        except ServeError:
            raise
        except Exception as exc:  # whatever it was, the thread goes on
            logger.exception("a sync failed")
            raise StoreUnavailable(f"the store failed: {exc}") from exc

    def _refusal(self, mutation: Mutation, outcome: Fenced | Rejected) -> ServeError:
        """What a refused write means: in a shared store, that another server has the session; in our own, a mistake."""
        if self.store.shared and isinstance(outcome, Fenced):
            return Overtaken(session_of(mutation))
        return ServeError("INTERNAL", str(outcome))


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """A mistake in what one group leads to must not keep the others from theirs."""
    try:
        yield
    except Exception:
        logger.exception("what follows a write failed")
