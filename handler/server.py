"""The whole worker side: engine, streaming endpoint and metrics port, in an event loop of their own thread."""

import asyncio
import contextlib
import logging
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import torch
import uvloop

from dnc_serve import __version__
from dnc_serve.handler.api.access import Access
from dnc_serve.handler.api.door import Door
from dnc_serve.handler.api.inference_service import InferenceService
from dnc_serve.handler.api.listener import SERVING, Listener
from dnc_serve.handler.api.logs import ChunkLog
from dnc_serve.handler.api.operations import Operations
from dnc_serve.handler.api.ordered_stream import OpenStreams
from dnc_serve.handler.api.rows import answer_calls
from dnc_serve.handler.api.scrapes import Scrapes
from dnc_serve.handler.api.self_test import self_test
from dnc_serve.handler.api.sequences import Sequences
from dnc_serve.handler.api.service import DncService
from dnc_serve.handler.api.shared_service import SharedService
from dnc_serve.handler.api.siblings import Siblings
from dnc_serve.handler.api.state_seal import StateSeal
from dnc_serve.handler.config import TOKENS_VARIABLE, ServeConfig
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.journal import Journal
from dnc_serve.handler.engine.maintenance import Maintenance
from dnc_serve.handler.engine.observer import Observers
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.handler.engine.session_table import SessionTable
from dnc_serve.handler.errors import ServeError, StoreUnavailable
from dnc_serve.handler.metrics import Metrics
from dnc_serve.handler.place import Place
from dnc_serve.handler.store import empty, make_store
from dnc_serve.handler.store.contract import StoreRefused
from dnc_serve.handler.store.parts import number_of_parts, part_folder
from dnc_serve.handler.tracing import make_tracing
from dnc_serve.model.artifact import load_artifact
from dnc_serve.proto.dnc.v1 import dnc_pb2

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
Result = TypeVar("Result")

# How long a thread waits for the interpreter, the loop for TorchServe's endpoint, or what comes back from the model for
# the loop; Python's 5 ms are as long as a step.
SWITCH_SECONDS = 0.0001


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the server listens, host:port; `http` is empty where no such port was asked for."""

    grpc: str
    metrics: str
    http: str = ""


class DncServer:
    """Serves one artifact; the methods may be called from any thread but the server's own."""

    def __init__(self, config: ServeConfig, artifact: Path, device: str, place: Place | None = None) -> None:
        self._config = config
        self._place = place
        self._artifact_folder = artifact
        self._device = device
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dnc-server", daemon=True)
        self._cleanup = contextlib.AsyncExitStack()
        self._drained = False

    def start(self) -> Addresses:
        """Returns when the server listens and a real step through it has succeeded; raises what went wrong."""
        self._thread.start()
        try:
            return self._await(self._start())
        except BaseException:
            self.stop()
            raise

    def call(self, calls: Sequence[dnc_pb2.Call | ServeError], timeout_s: float) -> list[dnc_pb2.CallResult]:
        """Answers the rows of a batch, each with its own status; those that take longer get DEADLINE_EXCEEDED."""
        return self._await(answer_calls(self._operations, self._access, calls, timeout_s))

    def drain(self, grace_s: float) -> None:
        """Takes nothing new, ends what runs, snapshots all sessions, and sends streams away, within the grace time."""
        self._await(self._drain(grace_s))

    def stop(self) -> None:
        """Closes everything; what was answered is as durable as promised."""
        if self._loop.is_running():
            self._await(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        if not self._loop.is_running():
            self._loop.close()

    def _await(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _start(self) -> Addresses:
        config = self._config
        sys.setswitchinterval(SWITCH_SECONDS)
        self._metrics = Metrics()
        # From here on, as the tiles do it too: over few rows, torch's threads spin, and a start of 0.2 s takes 3 s.
        torch.set_num_threads(1)
        artifact = load_artifact(self._artifact_folder, self._device, torchscript=config.code != "program")
        runner = choose_runner(artifact, self._device, config.code, [config.compiled_dir])
        listener = self._listener = Listener(config, self._place)
        listener.bind()
        self._cleanup.push_async_callback(listener.close, 0)
        store = make_store(config, config.advertise or listener.address, self._folder())
        await self._loop.run_in_executor(None, store.open)
        self._cleanup.callback(store.close)
        self._check_layout()
        tracing = make_tracing(config.otlp_endpoint)
        if tracing is not None:
            self._cleanup.callback(tracing.close)
        # Tracing comes before the metrics: they show which trace a value was seen in.
        observers = Observers([*([tracing] if tracing else []), self._metrics, ChunkLog()])
        journal = Journal(store, config.durability, config.sync_interval_ms / 1000, observers)
        self._cleanup.callback(journal.close)
        table = SessionTable(config, artifact.digest, runner.fingerprint)
        engine = self._engine = Engine(runner, journal, table, config, observers, digest=artifact.digest)
        self._cleanup.callback(engine.close)
        if journal.volatile:
            await self._loop.run_in_executor(None, empty, store)
        elif not store.shared:
            await self._loop.run_in_executor(None, store.sync)
            await self._loop.run_in_executor(None, engine.register_all)
        siblings = None if self._place is None else Siblings(self._place)
        seal = self._seal = StateSeal(config.state_keys, config.state_max_age_s)
        self._operations = Operations(engine, artifact, secrets.token_hex(8), self._metrics, siblings, seal)
        self._access = Access(config.tokens, os.environ.get(TOKENS_VARIABLE, ""), config.workers)
        self._streams = OpenStreams(config.max_streams)
        self._service = DncService(self._operations, self._access, self._streams, siblings)
        sequences = Sequences(self._operations)
        inference = InferenceService(self._operations, self._access, self._streams, sequences, siblings)
        if siblings is None:
            await listener.open(self._service, inference)
        else:
            await self._open_among(siblings, inference)
        await self_test(listener.private_address, self._operations, self._access, self._place)
        listener.close_private()
        maintenance = Maintenance(engine, self._read_again)
        metrics_address = self._open_metrics(engine, maintenance)
        for for_ever in (maintenance.run(), *([engine.ownership.run()] if store.shared else [])):
            self._cleanup.callback(self._loop.create_task(for_ever).cancel)
        http_address = await self._open_http(sequences) if config.http_port is not None else ""
        await listener.set_health(SERVING)
        return Addresses(listener.address, metrics_address, http_address)

    def _read_again(self) -> None:
        """Takes up tokens and keys that have changed."""
        self._access.refresh()
        self._seal.refresh()

    async def _open_http(self, sequences: Sequences) -> str:
        # Not everybody has it installed.
        from dnc_serve.handler.api.http_inference import HttpInference
        from dnc_serve.handler.api.http_server import HttpServer

        server = HttpServer(self._config, HttpInference(self._operations, self._access, sequences).application)
        self._cleanup.push_async_callback(server.close)
        await server.open()
        return server.address

    def _folder(self) -> Path:
        """Where this worker's sessions are."""
        place, state_dir = self._place, self._config.state_dir
        return state_dir if place is None else part_folder(state_dir, place.worker, place.workers)

    def _check_layout(self) -> None:
        """Raises StoreRefused if the folder, now locked, is laid out for another number of workers than these: another
        start did that meanwhile, or this one was made without `dnc serve`."""
        config, workers = self._config, 1 if self._place is None else self._place.workers
        if config.durability == "off" or config.store != "sqlite":
            return
        if (parts := number_of_parts(config.state_dir)) != workers:
            raise StoreRefused(
                f"{config.state_dir} is laid out for {parts or 'another number of'} workers, expected {workers}: "
                "start it with `dnc serve`, and one at a time"
            )

    async def _open_among(self, siblings: Siblings, inference: InferenceService) -> None:
        """Opens the endpoints of one of several workers."""
        place = siblings.place
        self._cleanup.push_async_callback(siblings.close)
        door = Door(place, self._service, inference, self._operations.count_of)
        self._cleanup.push_async_callback(door.close, 0)
        await door.open()
        await self._listener.open(SharedService(self._service, siblings), inference)
        place.tell(self._listener.address)

    def _open_metrics(self, engine: Engine, maintenance: Maintenance) -> str:
        config, metrics = self._config, self._metrics
        metrics.start_over()  # the self-test is not counted
        cache = engine.cache
        counts = {
            "slot": lambda: cache.slots_used,
            "host": lambda: cache.host_used,
            "store": lambda: max(0, len(engine.table) - cache.slots_used - cache.host_used),
        }
        for tier, count in counts.items():
            metrics.sessions.labels(tier).set_function(count)
            metrics.state_bytes.labels(tier).set_function(partial(_bytes_of, count, engine.row_bytes))
        metrics.journal_bytes.set_function(lambda: maintenance.journal_bytes)
        metrics.queued.set_function(lambda: engine.queued)
        metrics.streams.set_function(lambda: len(self._streams))
        metrics.build_info.labels(__version__, torch.__version__, platform.python_version(), grpc.__version__).set(1)
        runner = engine.runner
        metrics.model_info.labels(config.model, engine.digest, runner.kind, runner.note, str(runner.device)).set(1)
        # Of several workers, `dnc serve` shows what all of them count, which it asks them for.
        host = config.host if self._place is None else LOOPBACK
        scrapes = Scrapes(host, config.metrics_port, metrics.registry)
        self._cleanup.callback(scrapes.stop)
        return scrapes.address

    async def _drain(self, grace_s: float) -> None:
        if self._drained:
            return
        self._drained = True
        until = time.monotonic() + grace_s
        self._operations.draining = True
        self._metrics.draining.set(1)
        await self._listener.leave()
        self._streams.go_away("draining")
        while not self._engine.at_rest and time.monotonic() < until:
            await asyncio.sleep(0.01)
        if not self._engine.journal.volatile:
            try:
                await self._engine.snapshots.store_all(list(self._engine.table))
                await self._engine.journal.flush()
                if self._engine.ownership.shared:
                    await self._engine.ownership.give_up(list(self._engine.table))
            except StoreUnavailable as error:
                logger.error("the drain left sessions without a snapshot; their records recover them: %s", error)
        await self._listener.close(max(0.1, min(1.0, until - time.monotonic())))

    async def _stop(self) -> None:
        if hasattr(self, "_service"):
            await self._drain(1.0)
        await self._cleanup.aclose()
        await self._loop.shutdown_default_executor()


def _bytes_of(count: Callable[[], int], row_bytes: int) -> int:
    return count() * row_bytes
