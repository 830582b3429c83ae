"""Servers on machines that crash, lose power, freeze, are suspended, and whose clocks and disks misbehave."""

import os
import random
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import fakeredis
import redis

from dnc_serve.handler.api.copies import Copies
from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.journal import Journal
from dnc_serve.handler.engine.maintenance import Maintenance
from dnc_serve.handler.engine.observer import Observers
from dnc_serve.handler.engine.session_table import SessionTable
from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.metrics import Metrics
from dnc_serve.handler.store.redis import RedisStore
from dnc_serve.handler.store.sqlite import SQLiteStore
from tests.power import INDEX, LOG, NOTE, LogEnd, lose_power
from tests.simulation.loop import LIFE, Life, VirtualLoop, outside
from tests.simulation.model import Runner, artifact

ARTIFACT, METRICS = artifact(), Metrics()


class Disk(SQLiteStore):
    """The real store, whose syncs take a while, fail, or are not what they say."""

    def __init__(self, machine: "Machine") -> None:
        super().__init__(machine.folder)
        self._machine = machine

    def sync(self) -> None:
        loop = self._machine.loop
        loop.pause(loop.short() * self._machine.slowness)
        super().sync()
        loop.pause(loop.short() * self._machine.slowness)

    def drop(self) -> None:
        """The process is gone: its descriptors are closed, and nothing is moved or written."""
        if self._opened:
            self._files.close(last="reader")


class Pipeline:
    """Commands that are sent together."""

    def __init__(self, wire: "Wire") -> None:
        self._wire = wire
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, self._commands = self._commands, []

        def run() -> list[Any]:
            pipeline = self._wire.redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute(raise_on_error=raise_on_error))

        return self._wire.send(run)


class Wire:
    """A client of Redis, and the network on the way to it and back."""

    def __init__(self, machine: "Machine", server: fakeredis.FakeServer) -> None:
        self._machine = machine
        self.redis = fakeredis.FakeRedis(server=server)

    def send(self, run: Callable[[], Any]) -> Any:
        loop, chance, machine = self._machine.loop, self._machine.loop.chance, self._machine
        loop.pause(loop.short())
        fate = chance.random()
        if machine.cut_off or fate < machine.loss:
            loop.pause(0.5)
            raise redis.TimeoutError("nothing came back")
        if fate < 2 * machine.loss:  # it arrives when nobody waits any more
            loop.call_later(0.5 + 5 * chance.random() ** 3, run, context=outside())
            loop.pause(0.5)
            raise redis.TimeoutError("nothing came back")
        result = outside().run(run)  # the store's clock is its own
        if fate < 3 * machine.loss:  # the answer is lost with the connection, and the client sends it again
            result = outside().run(run)
        elif fate < 4 * machine.loss:
            loop.pause(0.5)
            raise redis.TimeoutError("nothing came back")
        loop.pause(loop.short())
        return result

    def pipeline(self, transaction: bool = False) -> Pipeline:
        return Pipeline(self)

    def script_load(self, text: str) -> Any:
        return self.send(lambda: self.redis.script_load(text))

    def scan_iter(self, **options: Any) -> Any:
        return iter(sorted(self.redis.scan_iter(**options)))

    def info(self, section: str) -> dict[str, str]:
        return {}


class Machine:
    """One server at a time, and what of it survives a crash. `log(what, ...)` notes an event."""

    def __init__(
        self, address: str, loop: VirtualLoop, config: ServeConfig, folder: Path,
        shared: fakeredis.FakeServer | None, log: Callable[..., None],
    ) -> None:  # fmt: skip
        self.address, self.loop, self.log = address, loop, log
        self._config = config
        self._shared = shared
        self._folders = (folder / f"{address}-{number}" for number in count())
        self.folder = next(self._folders)
        self.life: Life | None = None
        self.operations: Operations | None = None  # while it serves
        # What is wrong with it.
        self.lies = False  # a sync does nothing
        self.sync_fails = False
        self.slowness = 1.0
        self.cut_off = False  # from the shared store
        self.loss = 0.0  # of four kinds, on the way to the shared store
        self.power_lost_at = -1.0

    def start(self) -> None:
        self.life = Life(self.loop, self.crash)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / NOTE).touch()
        self.log("start", self.address)
        self.life.spawn(self._start(self.life))

    async def _start(self, life: Life) -> None:
        self.store = Disk(self) if self._shared is None else RedisStore("redis://store", self.address, 2.0)
        if self._shared is not None:
            self.store._redis.client = Wire(self, self._shared)
        while True:
            try:
                await self.loop.run_in_executor(None, self.store.open)
                break
            except StoreUnavailable as error:  # `dnc serve` would start it again
                self.log("no store", self.address, error)
        config, observers = self._config, Observers()
        journal = Journal(self.store, config.durability, config.sync_interval_ms / 1000, observers)
        table = SessionTable(config, ARTIFACT.digest, Runner.fingerprint)
        runner = Runner(lets_others_run=config.step_threads > 1)
        engine = Engine(runner, journal, table, config, observers, digest=ARTIFACT.digest)
        if not self.store.shared:
            while True:
                try:
                    await self.loop.run_in_executor(None, self.store.sync)
                    break
                except StoreUnavailable:
                    self.log("no store", self.address)
            await self.loop.run_in_executor(None, lambda: engine.register_all(self.store.heads()))
        maintenance = Maintenance(engine)
        life.spawn(maintenance.run())
        if self.store.shared:
            life.spawn(engine.ownership.run())
        self.operations = Operations(engine, ARTIFACT, "epoch", METRICS)
        self.copies = Copies(self.operations)
        self.log("serves", self.address)

    async def answer(self, call: str, request: Any) -> Any:
        """What the server answers; raises its refusals."""
        operations, caller = self.operations, Caller()
        if operations is None:
            raise StoreUnavailable("it starts")
        if call == "fork":
            return await self.copies.fork(request, caller)
        return await getattr(operations, call)(request, caller)

    def crash(self, chance: random.Random | None = None, power: bool = False) -> None:
        """The process ends. With its power, the machine loses what was not synced, or with `chance` some of it."""
        if self.life is None:
            return
        self.log("power" if power else "kill", self.address)
        self.life.alive = False
        self.life = self.operations = None
        if self._shared is None and (self.folder / LOG).exists():
            left = self.folder
            self.folder = next(self._folders)
            self.folder.mkdir(parents=True)
            for name in ("sessions.db", LOG, INDEX, NOTE):
                if (left / name).exists():
                    shutil.copyfile(left / name, self.folder / name)
            if power:
                self.power_lost_at = self.loop.now
                lost = lose_power(self.folder, chance)
                self.log("lost frames", self.address, lost)
            else:
                (self.folder / INDEX).unlink(missing_ok=True)  # it has not been opened yet
            self.store.drop()
            shutil.rmtree(left)

    def fdatasync(self, descriptor: int) -> None:
        """As the store's disk does it; see `tests.power`, whose note this writes."""
        if self.sync_fails:
            raise OSError(5, "the disk is sick")
        if not self.lies:
            end = LogEnd.of(self.folder)
            (self.folder / NOTE).write_bytes(end.salt + end.frames.to_bytes(4, "little"))


def fdatasync(machines: list[Machine]) -> Callable[[int], None]:
    """`os.fdatasync`, which finds out whose disk it is."""
    real = os.fdatasync

    def sync(descriptor: int) -> None:
        life = LIFE.get()
        machine = next((one for one in machines if life is not None and one.life is life), None)
        real(descriptor) if machine is None else machine.fdatasync(descriptor)

    return sync
