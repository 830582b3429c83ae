"""An engine in this process, awaited."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.registry import Registry
from dnc_serve.handler.engine.sessions import Session, new_incarnation
from dnc_serve.handler.engine.tiles import Tiles
from dnc_serve.handler.engine.work import Applied, Chunk, Work
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.journal.durability import make_store
from dnc_serve.handler.journal.journal import Journal
from dnc_serve.handler.journal.stores.contract import Head
from dnc_serve.handler.journal.stores.sqlite import SQLiteStore
from dnc_serve.handler.metrics import Metrics
from dnc_serve.model.export import Artifact

INPUT_SIZE, OUTPUT_SIZE = 5, 4


def random_inputs(seed: int, timesteps: int) -> Float32:
    """Bits as ±1, [T, I]."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), (timesteps, INPUT_SIZE))


class EngineHarness:
    """An engine, awaited."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def create(self, session_id: str, state: Any = None) -> Session:
        session = self.engine.new_session(session_id, "", new_incarnation())
        begun = asyncio.get_running_loop().create_future()
        self.engine.lifecycle.begin(session, state, lambda error: _settle(begun, None, error))
        await begun
        return session

    async def do(self, session: Session, make: Callable[[Callable[[Any, ServeError | None], None]], Work]) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.engine.submit(session, make(lambda result, error: _settle(future, result, error)))
        return await asyncio.wait_for(future, 30)

    async def step(self, session: Session, inputs: Any, **options: Any) -> Applied:
        applied: Applied = await self.do(session, lambda done: Chunk(inputs, done, **options))
        return applied


def _settle(future: "asyncio.Future[Any]", result: Any, error: ServeError | None) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


@asynccontextmanager
async def running_engine(tiles: Tiles, artifact: Artifact, config: ServeConfig) -> AsyncIterator[EngineHarness]:
    """An engine with the store that the config names; it is not snapshotted at the end, as after a crash."""
    metrics = Metrics()
    store = make_store(config, "127.0.0.1:1")
    store.open()
    journal = Journal(store, config.durability, 0.002, asyncio.get_running_loop(), metrics)
    try:
        registry = Registry(config.max_sessions, config.max_tombstones)
        engine = Engine(
            tiles, journal, registry, config, metrics, digest=artifact.digest, fingerprint=tiles.fingerprint
        )
        if not store.shared:  # of those, sessions are taken up as they are asked for
            engine.take_up_all()
        try:
            yield EngineHarness(engine)
        finally:
            engine.close()
    finally:
        journal.close()
        store.close()


class SharedByNobody(SQLiteStore):
    """A store that might be shared: sessions are adopted and given up, each write waits; nobody disputes them."""

    shared = True

    def reserve(self, session_id: str, owner: str, at_most: int | None) -> int:
        return 0

    def owned(self, owner: str, after: str, prefix: str, size: int) -> tuple[list[Head], str]:
        return sorted((head for head in self.heads() if not head.ended), key=lambda head: head.session_id), ""


@asynccontextmanager
async def adopting_engine(tiles: Tiles, artifact: Artifact, settings: ServeConfig) -> AsyncIterator[EngineHarness]:
    """An engine that shares its store, as it believes."""
    store = SharedByNobody(settings.state_dir)
    store.open()
    metrics = Metrics()
    journal = Journal(store, "sync", 0.002, asyncio.get_running_loop(), metrics)
    registry = Registry(settings.max_sessions, settings.max_tombstones)
    try:
        yield EngineHarness(
            Engine(tiles, journal, registry, settings, metrics, digest=artifact.digest, fingerprint=tiles.fingerprint)
        )
    finally:
        journal.close()
        store.close()
