"""One version of a model, with everything that is its own: its runner, its engine, and the engine's upkeep."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.maintenance import Maintenance
from dnc_serve.handler.engine.observer import Observer, Observers
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.handler.engine.session_table import SessionTable
from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.model_store import ModelStore
from dnc_serve.handler.named_models import NamedModel
from dnc_serve.handler.store.contract import Head
from dnc_serve.model.artifact import load_artifact

logger = logging.getLogger(__name__)


class ServedModel:
    """Loads a version of a model; with `open` it has an engine.

    Of what the server may hold it has an equal share with each of the other models that the server was started with.
    """

    engine: Engine

    def __init__(self, model: NamedModel, version: str, artifact: Path, config: ServeConfig, device: str) -> None:
        """Raises ArtifactError, KernelError and whatever else keeps a model from being loaded."""
        self.name, self.part, self.version = model.name, model.part, version
        self.artifact = load_artifact(artifact, device, torchscript=config.code != "program")
        self._runner = choose_runner(self.artifact, device, config.code, [config.compiled_dir])
        self._config = config.share(len(config.models))
        self._maintenance: Maintenance | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._opened = False

    @property
    def digest(self) -> str:
        return self.artifact.digest

    def open(self, store: ModelStore, observers: Sequence[Observer]) -> None:
        """Makes the engine, over the store of all versions."""
        told, digest = Observers(observers), self.digest
        table = SessionTable(self._config, digest, self._runner.fingerprint)
        self.engine = Engine(self._runner, store.journal, table, self._config, told, digest=digest)
        self._opened = True

    async def register(self, heads: Iterable[Head]) -> None:
        """Knows sessions that its store has."""
        await asyncio.get_running_loop().run_in_executor(None, self.engine.register_all, list(heads))

    def keep_up(self, minds_store: Callable[[], bool]) -> None:
        """Does from now on what is to be done beside serving. Of several versions, one `minds_store`."""
        loop = asyncio.get_running_loop()
        self._maintenance = Maintenance(self.engine, minds_store)
        self._tasks.append(loop.create_task(self._maintenance.run()))
        if self.engine.ownership.shared:
            self._tasks.append(loop.create_task(self.engine.ownership.run()))

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
        """Ends its threads, and what it does beside serving."""
        for task in self._tasks:
            task.cancel()
        if self._opened:
            self.engine.close()

    # What metrics show.

    @property
    def journal_bytes(self) -> int:
        """What the records and snapshots of its store take, as last looked at."""
        return 0 if self._maintenance is None else self._maintenance.journal_bytes

    def sessions_in(self, tier: str) -> int:
        """How many sessions have their state in a tier: slot, host or store."""
        cache = self.engine.cache
        used = {"slot": cache.slots_used, "host": cache.host_used}
        return used[tier] if tier in used else max(0, len(self.engine.table) - sum(used.values()))

    def bytes_in(self, tier: str) -> int:
        """How many bytes these states take."""
        return self.sessions_in(tier) * self.engine.row_bytes
