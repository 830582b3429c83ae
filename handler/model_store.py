"""Where the sessions of one model are, whichever version they are of: a store, and the journal over it."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.journal import Journal
from dnc_serve.handler.engine.observer import Observer, Observers
from dnc_serve.handler.place import Place
from dnc_serve.handler.store import empty, make_store
from dnc_serve.handler.store.contract import Head, Store, StoreRefused
from dnc_serve.handler.store.parts import model_folder, number_of_parts, part_folder


class ModelStore:
    """The part of the state folder, or of a shared store, that a model has; `part` is `NamedModel.part`."""

    store: Store
    journal: Journal

    def __init__(self, part: str, config: ServeConfig) -> None:
        self._part = part
        self._config = config
        self._cleanup = ExitStack()

    async def open(self, owner: str, place: Place | None, observers: Sequence[Observer]) -> list[Head]:
        """Opens it; returns the sessions that it has, unless others share it. `owner` is the address that a shared
        store sends clients to, `place` where the worker stands among several. Raises StoreRefused."""
        config, loop = self._config, asyncio.get_running_loop()
        folder, workers = model_folder(config.state_dir, self._part), 1 if place is None else place.workers
        own_folder = folder if place is None else part_folder(folder, place.worker, place.workers)
        self.store = store = make_store(config, owner, own_folder, self._part)
        await loop.run_in_executor(None, store.open)
        self._cleanup.callback(store.close)
        if config.durability != "off" and not store.shared:
            _check_layout(folder, workers)
        self.journal = Journal(store, config.durability, config.sync_interval_ms / 1000, Observers(observers))
        self._cleanup.callback(self.journal.close)
        if self.journal.volatile:
            await loop.run_in_executor(None, empty, store)
        if self.journal.volatile or store.shared:
            return []
        await loop.run_in_executor(None, store.sync)
        return await loop.run_in_executor(None, lambda: list(store.heads()))

    def close(self) -> None:
        """What was answered is as durable as promised."""
        self._cleanup.close()


def _check_layout(folder: Path, workers: int) -> None:
    """Raises StoreRefused if a folder, now locked, is laid out for another number of workers than these: another start
    did that meanwhile, or this one was made without `dnc serve`."""
    if (parts := number_of_parts(folder)) != workers:
        raise StoreRefused(
            f"{folder} is laid out for {parts or 'another number of'} workers, expected {workers}: "
            "start it with `dnc serve`, and one at a time"
        )
