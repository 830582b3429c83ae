"""What the server does beside serving, for each model: ending sessions whose time is up, pruning the journal,
forgetting tombstones. And, once for all: setting aside what Python would look through for garbage."""

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.requests import Delete
from dnc_serve.handler.engine.session import Status
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.contract import Prune

logger = logging.getLogger(__name__)

EXPIRY_S = 1.0
RETENTION_S = 30.0
# Prunes of one commit, so that none holds the loop up for long.
PRUNES_A_COMMIT = 64
# Sessions that end in one look, for the same reason.
ENDED_AT_ONCE = 256
# How often Python's collector looks at everything that is alive.
THAW_S = 900.0


class Maintenance:
    """Runs until it is cancelled. Of several engines over one store, one `minds_store`."""

    def __init__(self, engine: Engine, minds_store: Callable[[], bool] = lambda: True) -> None:
        self._engine = engine
        self._minds_store = minds_store
        self.journal_bytes = 0

    async def run(self) -> None:
        """Looks every second; a failure is logged and tried again."""
        next_retention = time.monotonic() + RETENTION_S
        while True:
            await asyncio.sleep(EXPIRY_S)
            CLOCK.now()  # it notices a step when it is looked at
            try:
                self._engine.lifecycle.end_again(self._engine.submit)
                self.expire()
                if not self._minds_store():
                    self.journal_bytes = 0
                    continue
                if self._engine.ownership.shared:
                    await self.expire_unserved()
                if time.monotonic() >= next_retention and not self._engine.journal.volatile:
                    next_retention = time.monotonic() + RETENTION_S
                    await self.retain()
            except ServeError as error:
                logger.warning("maintenance will be tried again: %s", error)
            except Exception:
                logger.exception("maintenance will be tried again")

    def expire(self) -> None:
        """Ends sessions that were idle for too long, or are too old."""
        engine, config = self._engine, self._engine.config
        overdue = engine.table.overdue(CLOCK.steady(), config.idle_timeout_s, config.max_age_s)
        ending = (
            (session, why) for session, why in overdue if not any(isinstance(one, Delete) for one in session.queue)
        )
        for session, why in islice(ending, ENDED_AT_ONCE):
            with suppress(ServeError):  # a full queue now; the others need not wait for that
                engine.submit(session, Delete(lambda result, error: None, why=why))

    async def expire_unserved(self) -> None:
        """The same for sessions of a shared store that no server has: they are taken to be ended."""
        engine, config = self._engine, self._engine.config
        now = CLOCK.at_least()
        born_before = now - config.max_age_s if config.max_age_s else None
        overdue = await engine.ownership.overdue(now - config.idle_timeout_s, born_before, ENDED_AT_ONCE)
        for head, why in overdue:
            with suppress(ServeError):  # somebody asked for it just now, or the queue is full
                await engine.ownership.adopt(head.session_id, head.owner)
                session = engine.table.find(head.session_id)
                if session is None or session.status is not Status.IDLE:
                    continue
                if why == "idle" and session.last_used_at > CLOCK.known(head.last_used_at):
                    continue
                engine.submit(session, Delete(lambda result, error: None, why=why))

    async def retain(self) -> None:
        """Prunes the journal to what is to be kept."""
        engine, config = self._engine, self._engine.config
        store, run = engine.journal.store, engine.loop.run_in_executor
        now = CLOCK.at_least()
        size = await run(None, store.size_bytes)
        before, excess = now - config.history_hours * 3600, max(0, size - config.history_bytes)
        prunes = await run(None, store.prunable, before, excess)
        for start in range(0, len(prunes), PRUNES_A_COMMIT):
            await self._write(prunes[start : start + PRUNES_A_COMMIT])
        oldest = now - config.tombstone_days * 86_400
        await run(None, store.forget_tombstones, oldest, config.max_tombstones)
        self.journal_bytes = await run(None, store.size_bytes)

    async def _write(self, prunes: list[Prune]) -> None:
        written = self._engine.loop.create_future()
        self._engine.journal.write(prunes, written.set_result)
        await written


class Garbage:
    """Python's collector of cycles, kept from walking over all sessions again and again.

    A full collection looks at every container that is alive, and everybody waits: 20 ms for 10,000 sessions. So what
    has lived for a second is set aside, where collections don't look; a cycle among that is found once in a while, when
    all is looked at.
    """

    def __init__(self) -> None:
        self._thaw_at = 0.0

    def settle(self) -> None:
        """Sets aside what is alive: most seconds after a look at what is young, seldom after one at everything."""
        now = time.monotonic()
        if now < self._thaw_at:
            gc.collect(1)
        else:
            self._thaw_at = now + THAW_S
            gc.unfreeze()
            gc.collect()
        gc.freeze()
