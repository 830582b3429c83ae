"""An engine in this process, awaited."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.journal import Journal
from dnc_serve.handler.engine.observer import Observers
from dnc_serve.handler.engine.requests import Applied, Chunk, Request
from dnc_serve.handler.engine.session import Session, new_incarnation
from dnc_serve.handler.engine.session_table import SessionTable
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.metrics import Metrics
from dnc_serve.handler.store import make_store
from dnc_serve.handler.store.contract import Head, Lease, Store
from dnc_serve.handler.store.sqlite import SQLiteStore
from dnc_serve.model.artifact import Artifact
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from dnc_serve.model.kernel import user_cache
from dnc_serve.model.kernel.warm import warm
from tests.waiting import PATIENCE_S

INPUT_SIZE, OUTPUT_SIZE, LAYERS = 5, 4, 2


def small_dnc(seed: int = 7) -> DNC:
    """A random model with two layers, two heads each, and one shared memory. Nearly all tests serve one of its sizes:
    each configuration takes ten seconds to compile."""
    torch.manual_seed(seed)
    return DNC(
        INPUT_SIZE, 24, num_layers=LAYERS, num_hidden_layers=1, nr_cells=12, cell_size=6, read_heads=2,
        output_size=OUTPUT_SIZE,
    )  # fmt: skip


def export_small(folder: Path, seed: int = 7) -> Path:
    """Its artifact, with the row kernel in the user's cache: compiled once for all processes of the tests."""
    export(small_dnc(seed), folder)
    if find_spec("numba") is None:  # as on a machine for tests on a GPU
        return folder
    kernels = user_cache()
    kernels.mkdir(parents=True, exist_ok=True)
    with FileLock(kernels / "tests.lock"):
        warm([small_dnc(seed).config], kernels)
    return folder


LSTM_INPUTS, LSTM_UNITS = 3, 8


def export_lstm(folder: Path, seed: int = 11) -> Path:
    """The artifact of a random model that is no DNC."""
    torch.manual_seed(seed)
    export(torch.nn.LSTM(LSTM_INPUTS, LSTM_UNITS), folder)
    return folder


def random_inputs(seed: int, timesteps: int) -> Float32:
    """Bits as ±1, [T, I]."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), (timesteps, INPUT_SIZE))


class EngineHarness:
    """An engine, awaited."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine = engine
        self.metrics = metrics

    async def create(self, session_id: str, state: Any = None) -> Session:
        session = self.engine.table.new_session(session_id, "", new_incarnation())
        begun = asyncio.get_running_loop().create_future()
        self.engine.lifecycle.begin(session, state, lambda error: _settle(begun, None, error))
        await begun
        return session

    async def do(self, session: Session, make: Callable[[Callable[[Any, ServeError | None], None]], Request]) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.engine.submit(session, make(lambda result, error: _settle(future, result, error)))
        return await asyncio.wait_for(future, PATIENCE_S)

    async def step(self, session: Session, inputs: Any, **options: Any) -> Applied:
        applied: Applied = await self.do(session, lambda done: Chunk(inputs, done, **options))
        return applied


def _settle(future: "asyncio.Future[Any]", result: Any, error: ServeError | None) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


@asynccontextmanager
async def running_engine(tiles: TileRunner, artifact: Artifact, config: ServeConfig) -> AsyncIterator[EngineHarness]:
    """An engine with the store that the config names; it is not snapshotted at the end, as after a crash."""
    store = make_store(config, "127.0.0.1:1")
    async with engine_over(store, tiles, artifact, config, config.durability) as harness:
        if not store.shared:  # of those, sessions are registered as they are asked for
            harness.engine.register_all(store.heads())
        yield harness


@asynccontextmanager
async def engine_over(
    store: Store, tiles: TileRunner, artifact: Artifact, config: ServeConfig, durability: str
) -> AsyncIterator[EngineHarness]:
    """An engine over a store, which is opened and closed."""
    store.open()
    metrics = Metrics()
    observers = Observers([metrics.of("small")])
    journal = Journal(store, durability, 0.002, observers)
    try:
        table = SessionTable(config, artifact.digest, tiles.fingerprint)
        engine = Engine(tiles, journal, table, config, observers, digest=artifact.digest)
        try:
            yield EngineHarness(engine, metrics)
        finally:
            engine.close()
    finally:
        journal.close()
        store.close()


class SharedByNobody(SQLiteStore):
    """A store that might be shared: sessions are adopted and given up, each write waits; nobody disputes them."""

    shared = True

    def acquire(self, session_id: str) -> Lease:
        return Lease(session_id, 1, 60.0)

    def renew(self, leases: Sequence[Lease]) -> list[Lease | None]:
        return [*leases]

    def release(self, leases: Sequence[Lease]) -> None:
        """Nobody waits for them."""

    def reserve(self, session_id: str, owner: str, at_most: int | None) -> int:
        return 0

    def count_of(self, owner: str, at_most: int | None) -> int:
        return 0

    def owned(self, owner: str, after: str, prefix: str, size: int) -> tuple[list[Head], str]:
        return sorted((head for head in self.heads() if not head.ended), key=lambda head: head.session_id), ""


@asynccontextmanager
async def adopting_engine(tiles: TileRunner, artifact: Artifact, settings: ServeConfig) -> AsyncIterator[EngineHarness]:
    """An engine that shares its store, as it believes."""
    async with engine_over(SharedByNobody(settings.state_dir), tiles, artifact, settings, "sync") as harness:
        yield harness
