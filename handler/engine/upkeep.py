"""What the server does beside serving: ending sessions whose time is up, pruning the journal, forgetting tombstones,
setting aside what Python would look through for garbage."""

import asyncio
import logging
import time
from contextlib import suppress
from itertools import islice

from dnc_serve.handler.doors.access import Access
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.work import Delete
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.garbage import Garbage
from dnc_serve.handler.journal.stores.contract import Prune

logger = logging.getLogger(__name__)

EXPIRY_SECONDS = 1.0
RETENTION_SECONDS = 30.0
# Prunes of one commit, so that none holds the loop up for long.
PRUNES_A_COMMIT = 64
# Sessions that end in one look, for the same reason.
ENDED_AT_ONCE = 256


class Upkeep:
    """Runs until it is cancelled."""

    def __init__(self, engine: Engine, access: Access, garbage: Garbage) -> None:
        self._engine = engine
        self._access = access
        self._garbage = garbage

    async def run(self) -> None:
        """Looks every second; a failure is logged and tried again."""
        next_retention = time.monotonic() + RETENTION_SECONDS
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            try:
                self._garbage.settle()
                self._access.reload()
                self._access.end_calls()
                self._engine.lifecycle.end_again()
                self.expire()
                if self._engine.leases.shared:
                    await self.expire_unserved()
                if time.monotonic() >= next_retention and not self._engine.journal.volatile:
                    next_retention = time.monotonic() + RETENTION_SECONDS
                    await self.retain()
            except ServeError as error:
                logger.warning("upkeep will be tried again: %s", error)
            except Exception:
                logger.exception("upkeep will be tried again")

    def expire(self) -> None:
        """Ends sessions that were idle for too long, or are too old."""
        engine, config = self._engine, self._engine.config
        overdue = engine.registry.overdue(time.time(), config.idle_timeout_s, config.max_age_s)
        ending = (
            (session, why) for session, why in overdue if not any(isinstance(work, Delete) for work in session.fifo)
        )
        for session, why in islice(ending, ENDED_AT_ONCE):
            with suppress(ServeError):  # a full queue now; the others need not wait for that
                engine.submit(session, Delete(lambda result, error: None, why=why))

    async def expire_unserved(self) -> None:
        """The same for sessions of a shared store that no server has: they are taken up to be ended."""
        engine, config = self._engine, self._engine.config
        now = time.time()
        born_before = now - config.max_age_s if config.max_age_s else None
        overdue = await engine.loop.run_in_executor(
            None, engine.journal.store.overdue, now - config.idle_timeout_s, born_before, ENDED_AT_ONCE
        )
        for head, why in overdue:
            with suppress(ServeError):  # somebody asked for it just now, or the queue is full
                await engine.leases.adopt(head.session_id, head.owner)
                session = engine.registry.find(head.session_id)
                if session is None or not session.idle or (why == "idle" and session.last_used_at > head.last_used_at):
                    continue
                engine.submit(session, Delete(lambda result, error: None, why=why))

    async def retain(self) -> None:
        """Prunes the journal to what is to be kept."""
        engine, config = self._engine, self._engine.config
        store = engine.journal.store
        now = time.time()
        size = await engine.loop.run_in_executor(None, store.size_bytes)
        prunes = await engine.loop.run_in_executor(
            None, store.prunable, now - config.history_hours * 3600, max(0, size - config.history_bytes)
        )
        for start in range(0, len(prunes), PRUNES_A_COMMIT):
            await self._write(prunes[start : start + PRUNES_A_COMMIT])
        oldest = now - config.tombstone_days * 86_400
        await engine.loop.run_in_executor(None, store.forget_tombstones, oldest, config.max_tombstones)
        engine.metrics.journal_bytes.set(await engine.loop.run_in_executor(None, store.size_bytes))

    async def _write(self, prunes: list[Prune]) -> None:
        written = self._engine.loop.create_future()
        self._engine.journal.write(prunes, written.set_result)
        await written
