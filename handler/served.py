"""One model of a server, with everything that is its own: its runner, engine, store and journal, and their upkeep."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.journal import Journal
from dnc_serve.handler.engine.maintenance import Maintenance
from dnc_serve.handler.engine.observer import Observer, Observers
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.handler.engine.session_table import SessionTable
from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.named_models import NamedModel
from dnc_serve.handler.place import Place
from dnc_serve.handler.store import empty, make_store
from dnc_serve.handler.store.contract import StoreRefused
from dnc_serve.handler.store.parts import model_folder, number_of_parts, part_folder
from dnc_serve.model.artifact import load_artifact

logger = logging.getLogger(__name__)


class ServedModel:
    """Loads a model; `open` then finds its sessions, and it can be stepped.

    Of what the server may hold it has an equal share with each of the other models.
    """

    engine: Engine

    def __init__(self, model: NamedModel, artifact: Path, config: ServeConfig, device: str) -> None:
        """Raises ArtifactError, KernelError and whatever else keeps a model from being loaded."""
        self.name = model.name
        self.artifact = load_artifact(artifact, device, torchscript=config.code != "program")
        self._runner = choose_runner(self.artifact, device, config.code, [config.compiled_dir])
        self._part = model.part
        source = model.source if not model.part else f"{model.part}={model.source}"
        self._config = config.share(len(config.models)).model_copy(update={"model": (source,)})
        self._cleanup = ExitStack()
        self._maintenance: Maintenance | None = None

    async def open(self, owner: str, place: Place | None, observers: Sequence[Observer]) -> None:
        """Opens its part of the store, and knows the sessions there. `owner` is the address that a shared store sends
        clients to, `place` where its worker stands among several. Raises StoreRefused."""
        config, loop = self._config, asyncio.get_running_loop()
        folder, workers = model_folder(config.state_dir, self._part), 1 if place is None else place.workers
        own_folder = folder if place is None else part_folder(folder, place.worker, place.workers)
        store = make_store(config, owner, own_folder, self._part)
        await loop.run_in_executor(None, store.open)
        self._cleanup.callback(store.close)
        if config.durability != "off" and not store.shared:
            _check_layout(folder, workers)
        told = Observers(observers)
        journal = Journal(store, config.durability, config.sync_interval_ms / 1000, told)
        self._cleanup.callback(journal.close)
        digest = self.artifact.digest
        table = SessionTable(config, digest, self._runner.fingerprint)
        engine = self.engine = Engine(self._runner, journal, table, config, told, digest=digest)
        self._cleanup.callback(engine.close)
        if journal.volatile:
            await loop.run_in_executor(None, empty, store)
        elif not store.shared:
            await loop.run_in_executor(None, store.sync)
            await loop.run_in_executor(None, engine.register_all)

    def upkeep(self, also: Callable[[], None] | None) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs for as long as it is served; `also` is called every second."""
        self._maintenance = Maintenance(self.engine, *([] if also is None else [also]))
        yield self._maintenance.run()
        if self.engine.ownership.shared:
            yield self.engine.ownership.run()

    async def leave(self) -> None:
        """Snapshots all sessions, and gives those of a shared store up to other servers."""
        engine = self.engine
        if engine.journal.volatile:
            return
        try:
            await engine.snapshots.store_all(list(engine.table))
            await engine.journal.flush()
            if engine.ownership.shared:
                await engine.ownership.give_up(list(engine.table))
        except StoreUnavailable as error:
            logger.error("the drain left sessions without a snapshot; their records recover them: %s", error)

    def close(self) -> None:
        """Closes the store and ends its threads; what was answered is as durable as promised."""
        self._cleanup.close()

    # What metrics show.

    @property
    def journal_bytes(self) -> int:
        """What its records and snapshots take, as last looked at."""
        return 0 if self._maintenance is None else self._maintenance.journal_bytes

    def sessions_in(self, tier: str) -> int:
        """How many sessions have their state in a tier: slot, host or store."""
        cache = self.engine.cache
        used = {"slot": cache.slots_used, "host": cache.host_used}
        return used[tier] if tier in used else max(0, len(self.engine.table) - sum(used.values()))

    def bytes_in(self, tier: str) -> int:
        """How many bytes these states take."""
        return self.sessions_in(tier) * self.engine.row_bytes


def _check_layout(folder: Path, workers: int) -> None:
    """Raises StoreRefused if a folder, now locked, is laid out for another number of workers than these: another start
    did that meanwhile, or this one was made without `dnc serve`."""
    if (parts := number_of_parts(folder)) != workers:
        raise StoreRefused(
            f"{folder} is laid out for {parts or 'another number of'} workers, expected {workers}: "
            "start it with `dnc serve`, and one at a time"
        )
