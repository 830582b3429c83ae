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
from dnc_serve.handler.api.administration import Administration
from dnc_serve.handler.api.door import Door
from dnc_serve.handler.api.inference_models import InferenceModels
from dnc_serve.handler.api.inference_service import InferenceService
from dnc_serve.handler.api.listener import SERVING, Listener
from dnc_serve.handler.api.logs import ChunkLog
from dnc_serve.handler.api.operations import Operations
from dnc_serve.handler.api.ordered_stream import OpenStreams
from dnc_serve.handler.api.rows import answer_calls
from dnc_serve.handler.api.scrapes import Scrapes
from dnc_serve.handler.api.self_test import self_test
from dnc_serve.handler.api.service import DncService
from dnc_serve.handler.api.shared_service import SharedService
from dnc_serve.handler.api.siblings import Siblings
from dnc_serve.handler.api.state_seal import StateSeal
from dnc_serve.handler.config import TOKENS_VARIABLE, ServeConfig
from dnc_serve.handler.engine.maintenance import Garbage
from dnc_serve.handler.engine.observer import Observer
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.metrics import TIERS, Metrics
from dnc_serve.handler.model_keeper import ModelKeeper
from dnc_serve.handler.place import Place
from dnc_serve.handler.served import ServedModel
from dnc_serve.handler.tracing import make_tracing
from dnc_serve.handler.watched_folder import WatchedFolder
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
    """Serves the models of a configuration, whose artifacts are given in their order; the methods may be called from
    any thread but the server's own."""

    def __init__(self, config: ServeConfig, artifacts: Sequence[Path], device: str, place: Place | None = None) -> None:
        self._config = config
        self._place = place
        self._artifacts = artifacts
        self._device = device
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dnc-server", daemon=True)
        self._cleanup = contextlib.AsyncExitStack()
        self._drained = False
        self._garbage = Garbage()

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
        return self._await(answer_calls(self._models, self._administration, self._access, calls, timeout_s))

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
        self._metrics = metrics = Metrics()
        # From here on, as the tiles do it too: over few rows, torch's threads spin, and a start of 0.2 s takes 3 s.
        torch.set_num_threads(1)
        tracing = make_tracing(config.otlp_endpoint)
        if tracing is not None:
            self._cleanup.callback(tracing.close)

        def observers(name: str, version: str) -> list[Observer]:
            # Tracing comes before the metrics: they show which trace a value was seen in.
            return [*([tracing] if tracing else []), metrics.of(name, version), ChunkLog()]

        keeper = self._keeper = ModelKeeper(config, self._artifacts, self._device, self._place, observers)
        listener = self._listener = Listener(config, self._place)
        listener.bind()
        self._cleanup.push_async_callback(listener.close, 0)
        siblings = None if self._place is None else Siblings(self._place)
        seal = self._seal = StateSeal(config.state_keys, config.state_max_age_s)
        epoch = secrets.token_hex(8)

        def operations(one: ServedModel) -> Operations:
            self._show(one)
            return Operations(one.engine, one.artifact, epoch, metrics, siblings, seal, one.name, one.version)

        self._cleanup.callback(keeper.close)
        models = self._models = await keeper.open(config.advertise or listener.address, operations)
        administration = self._administration = Administration(models, keeper, siblings)
        self._access = Access(config.tokens, os.environ.get(TOKENS_VARIABLE, ""), config.workers)
        self._streams = OpenStreams(config.max_streams)
        self._service = DncService(models, administration, self._access, self._streams, siblings)
        inference_models = InferenceModels(models)
        inference = InferenceService(inference_models, self._access, self._streams, siblings)
        if siblings is None:
            await listener.open(self._service, inference)
        else:
            await self._open_among(siblings, inference)
        for one in models.all:
            await self_test(listener.private_address, one, self._access, self._place)
        listener.close_private()
        metrics_address = self._open_metrics()
        keeper.keep_up()
        self._cleanup.callback(self._loop.create_task(self._keep_up()).cancel)
        if config.model_folder and (self._place is None or not self._place.worker):  # one looks for all
            watched = WatchedFolder(Path(config.model_folder), models.has, administration.take)
            self._cleanup.callback(self._loop.create_task(watched.run()).cancel)
        http_address = await self._open_http(inference_models) if config.http_port is not None else ""
        await listener.set_health(SERVING)
        return Addresses(listener.address, metrics_address, http_address)

    async def _keep_up(self) -> None:
        """What is looked at every second, once for all models: garbage, and tokens and keys that have changed."""
        while True:
            await asyncio.sleep(1.0)
            try:
                self._garbage.settle()
                self._access.refresh()
                self._seal.refresh()
            except Exception:
                logger.exception("what is done every second will be done again")

    async def _open_http(self, inference: InferenceModels) -> str:
        # Not everybody has it installed.
        from dnc_serve.handler.api.http_inference import HttpInference
        from dnc_serve.handler.api.http_server import HttpServer

        server = HttpServer(self._config, HttpInference(inference, self._administration, self._access).application)
        self._cleanup.push_async_callback(server.close)
        await server.open()
        return server.address

    async def _open_among(self, siblings: Siblings, inference: InferenceService) -> None:
        """Opens the endpoints of one of several workers."""
        place = siblings.place
        self._cleanup.push_async_callback(siblings.close)
        door = Door(place, self._service, inference, self._models.held_by, self._administration.asked)
        self._cleanup.push_async_callback(door.close, 0)
        await door.open()
        await self._listener.open(SharedService(self._service, siblings), inference)
        place.tell(self._listener.address)

    def _open_metrics(self) -> str:
        config, metrics, keeper = self._config, self._metrics, self._keeper
        metrics.start_over()  # the self-test is not counted
        for tier in TIERS:
            metrics.sessions.labels(tier).set_function(partial(self._total, ServedModel.sessions_in, tier))
            metrics.state_bytes.labels(tier).set_function(partial(self._total, ServedModel.bytes_in, tier))
        metrics.journal_bytes.set_function(lambda: sum(one.journal_bytes for one in keeper.served))
        metrics.queued.set_function(lambda: sum(one.engine.queued for one in keeper.served))
        metrics.streams.set_function(lambda: len(self._streams))
        metrics.build_info.labels(__version__, torch.__version__, platform.python_version(), grpc.__version__).set(1)
        for one in keeper.served:
            self._show(one)
        # Of several workers, `dnc serve` shows what all of them count, which it asks them for.
        host = config.host if self._place is None else LOOPBACK
        scrapes = Scrapes(host, config.metrics_port, metrics.registry)
        self._cleanup.callback(scrapes.stop)
        return scrapes.address

    def _show(self, one: ServedModel) -> None:
        """Its metrics are seen from now on."""
        self._metrics.of(one.name, one.version).sessions = partial(len, one.engine.table)
        runner = one.engine.runner
        labels = (one.name, one.version, one.digest, runner.kind, runner.note, str(runner.device))
        self._metrics.model_info.labels(*labels).set(1)

    def _total(self, of: Callable[[ServedModel, str], int], tier: str) -> int:
        return sum(of(model, tier) for model in self._keeper.served)

    async def _drain(self, grace_s: float) -> None:
        if self._drained:
            return
        self._drained = True
        until = time.monotonic() + grace_s
        self._models.drain()
        self._metrics.draining.set(1)
        await self._listener.leave()
        self._streams.go_away("draining")
        while not self._models.at_rest and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(model.leave() for model in self._keeper.served))
        await self._listener.close(max(0.1, min(1.0, until - time.monotonic())))

    async def _stop(self) -> None:
        if hasattr(self, "_service"):
            await self._drain(1.0)
        await self._cleanup.aclose()
        await self._loop.shutdown_default_executor()
