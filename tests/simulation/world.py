"""One seed: what there is, what befalls it, and what has to hold at its end."""

import asyncio
import hashlib
import logging
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fakeredis

from dnc_serve.handler.config import ServeConfig
from tests.simulation.clients import Client, Violation, everything_of
from tests.simulation.loop import VirtualLoop, virtual
from tests.simulation.machines import Machine, fdatasync
from tests.simulation.network import Network

MODULES = ("dnc_serve.handler.", "fakeredis.")
PATIENCE_S = 3600.0
FOLDER = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


@dataclass(slots=True)
class Outcome:
    """What became of a seed: `failure` is empty where all held."""

    seed: int
    kind: str
    failure: str = ""
    events: list[tuple[float, str]] = field(default_factory=list)
    answered: int = 0
    crashes: int = 0
    virtual_s: float = 0.0

    @property
    def digest(self) -> str:
        """Equal for runs with the same events at the same moments."""
        return hashlib.blake2b("\n".join(self.lines()).encode(), digest_size=16).hexdigest()

    def lines(self) -> list[str]:
        return [f"{at:.6f} {event}" for at, event in self.events]


class Mistakes(logging.Handler):
    """Exceptions that the server has only logged."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


def run(seed: int) -> Outcome:
    """Runs a seed; it leaves nothing behind."""
    chance = random.Random(seed)
    logger, mistakes = logging.getLogger("dnc_serve"), Mistakes()
    former, real_sync = (logger.propagate, logger.handlers), os.fdatasync
    logger.propagate, logger.handlers = False, [mistakes]
    try:
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder, virtual(chance, MODULES) as loop:
            return World(seed, loop, Path(folder), mistakes).run()
    finally:
        os.fdatasync = real_sync
        logger.propagate, logger.handlers = former


class World:
    """One server with a disk of its own, or three with a shared store, and their clients."""

    def __init__(self, seed: int, loop: VirtualLoop, folder: Path, mistakes: Mistakes) -> None:
        self.loop, self.mistakes = loop, mistakes
        self._folder = str(folder)
        chance = self.chance = loop.chance
        self.shared = seed % 4 == 3
        durability = chance.choice(("async", "sync"))
        lies = not self.shared and chance.random() < 0.15
        kind = "shared" if self.shared else durability + (", lying disk" if lies else "")
        self.outcome = Outcome(seed, kind)
        self.loop.set_exception_handler(self._failed)
        config = ServeConfig(
            durability=durability, slots=2, host_bytes=8 * chance.choice((2, 4)), snapshot_every_timesteps=6,
            reply_window_chunks=chance.choice((2, 64)), step_threads=chance.choice((1, 2)), lease_s=2.0,
            idle_timeout_s=7200.0, history_bytes=chance.choice((2000, 1 << 28)), state_dir=folder,
            sync_interval_ms=chance.choice((5.0, 200.0)),
        )  # fmt: skip
        store = fakeredis.FakeServer() if self.shared else None
        self.machines = [
            Machine(f"host-{number}:1", self.loop, config, folder, store, self.log)
            for number in range(3 if self.shared else 1)
        ]
        for machine in self.machines:
            machine.lies = lies
        os.fdatasync = fdatasync(self.machines)
        lasting = self.shared or (durability == "sync" and not lies)
        self.network = Network(self.loop, self.machines, lasting, self.log)
        self.clients = [Client(number, self.network, not lasting) for number in range(chance.randint(1, 5))]

    def log(self, *event: Any) -> None:
        # Which folder it was is no event.
        said = [str(one).replace(self._folder, "FOLDER") for one in event]
        self.outcome.events.append((self.loop.now, " ".join(said).replace("\n", " ")))

    def run(self) -> Outcome:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(asyncio.wait_for(self._history(), PATIENCE_S))
        except Violation as violation:
            self.outcome.failure = str(violation)
        except TimeoutError:
            self.outcome.failure = f"after {PATIENCE_S:.0f} s clients still wait for answers"
        except Exception as error:  # refused where nobody may be, or a mistake of the simulation
            self.outcome.failure = repr(error)
        if self.mistakes.found and not self.outcome.failure:
            self.outcome.failure = f"the server made a mistake: {self.mistakes.found[0]}"
        self.log("end", self.outcome.failure)
        self.outcome.virtual_s = self.loop.now
        self.outcome.crashes = sum(event.startswith(("kill", "power")) for _, event in self.outcome.events)
        self.outcome.answered = everything_of(self.clients)
        for machine in self.machines:
            machine.crash()
        asyncio.set_event_loop(None)
        self.loop.close()
        return self.outcome

    def _failed(self, loop: Any, context: dict[str, Any]) -> None:
        self.mistakes.found.append(f"{context['message']}: {context.get('exception')!r}")

    async def _history(self) -> None:
        for machine in self.machines:
            machine.start()
        faults = [asyncio.create_task(self._befall(machine)) for machine in self.machines]
        self.network.loss = self.chance.choice((0.0, 0.05, 0.2))
        clients = asyncio.gather(*(client.run(self.chance.randint(1, 3), 12) for client in self.clients))
        await asyncio.wait([clients, *faults], return_when=asyncio.FIRST_COMPLETED)
        for fault in faults:
            if fault.done():
                fault.result()
            fault.cancel()
        await clients
        self._mend()
        for client in self.clients:
            await client.check()
        for machine in self.machines:  # once more, from what is stored
            machine.crash()
            machine.start()
        for client in self.clients:
            await client.check()

    def _mend(self) -> None:
        """Whatever is wrong ends."""
        self.network.loss = 0.0
        for machine in self.machines:
            machine.loss, machine.sync_fails, machine.cut_off, machine.slowness = 0.0, False, False, 1.0
            if machine.life is None:
                machine.start()
                continue
            machine.life.countdown = -1
            if machine.life.frozen:
                machine.life.thaw()

    async def _befall(self, machine: Machine) -> None:
        """One fault after the other."""
        chance = self.chance
        faults: list[Callable[[Machine], Any]] = [self._kill, self._kill, self._freeze, self._jump]
        faults += [self._cut_off, self._lossy] if self.shared else [self._lose_power, self._sick_disk]
        pace = chance.choice((0.3, 1.0, 3.0))
        while True:
            await asyncio.sleep(pace * chance.expovariate(1.0))
            await chance.choice(faults)(machine)

    async def _kill(self, machine: Machine) -> None:
        if machine.life is None:
            return
        if self.chance.random() < 0.5:  # between any two of its callbacks
            machine.life.countdown = self.chance.randint(1, 200)
            await asyncio.sleep(1.0)
        machine.crash()
        await asyncio.sleep(self.chance.random())
        machine.start()

    async def _lose_power(self, machine: Machine) -> None:
        machine.slowness = self.chance.choice((1.0, 30.0))
        await asyncio.sleep(self.chance.random())
        machine.crash(self.chance, power=True)
        machine.slowness = 1.0
        machine.start()

    async def _freeze(self, machine: Machine) -> None:
        """As by SIGSTOP; or the machine is suspended, and its monotonic clock with it."""
        life, seconds = machine.life, self.chance.choice((0.1, 3.0, 8.0)) * self.chance.random()
        if life is None:
            return
        self.log("freeze", machine.address)
        life.frozen = True
        await asyncio.sleep(seconds)
        if self.chance.random() < 0.5:
            life.slept += seconds
        self.log("thaw", machine.address)
        life.thaw()

    async def _jump(self, machine: Machine) -> None:
        if machine.life is not None:
            machine.life.skew = self.chance.choice((-1, 1)) * 10 ** self.chance.uniform(0, 5)
            self.log("jump", machine.address, machine.life.skew)

    async def _cut_off(self, machine: Machine) -> None:
        self.log("cut off", machine.address)
        machine.cut_off = True
        await asyncio.sleep(4 * self.chance.random())
        machine.cut_off = False

    async def _lossy(self, machine: Machine) -> None:
        machine.loss = self.chance.choice((0.05, 0.2))
        await asyncio.sleep(3 * self.chance.random())
        machine.loss = 0.0

    async def _sick_disk(self, machine: Machine) -> None:
        machine.sync_fails = True
        await asyncio.sleep(3 * self.chance.random())
        machine.sync_fails = False
