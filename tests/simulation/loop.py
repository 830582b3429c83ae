"""Virtual time: an event loop, threads and clocks for servers that share one process and one seed.

What a server does, it does in a context that names its `Life`. The loop asks the life before each callback: one that is
dead does nothing any more, and one that is frozen does it when it thaws. So a server can be dropped between any two
awaits, and what it left pending stays undone.

A server's threads are greenlets: they run when nothing else does, and whatever they wait for ends at a virtual moment.
"""

import asyncio
import contextvars
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import greenlet

from dnc_serve.handler.clock import CLOCK, Clock

EPOCH = 1_700_000_000.0
UPTIME = 10_000.0


class Life:
    """One run of a server, from its start to its crash. `skew` and `slept` are of the machine: what its wall clock is
    ahead, and how long it was suspended, which its monotonic clock doesn't count."""

    def __init__(self, loop: "VirtualLoop", on_crash: Callable[[], None]) -> None:
        self.loop = loop
        self.alive = True
        self.frozen = False
        self.skew = self.slept = 0.0
        self.countdown = -1  # callbacks until it crashes
        self._on_crash = on_crash
        self._backlog: list[asyncio.Handle] = []
        self.context = contextvars.copy_context()
        self.context.run(LIFE.set, self)
        self.clock = self.context.run(Clock)

    def run(self, handle: asyncio.Handle, callback: Callable[..., None], *args: Any) -> None:
        if not self.alive:
            return
        if self.frozen:
            self._backlog.append(handle)
            return
        self.countdown -= 1
        if self.countdown == 0:
            self._on_crash()
            return
        callback(*args)

    def thaw(self) -> None:
        self.frozen = False
        self.loop.do_next(self._backlog)
        self._backlog = []

    def spawn(self, work: Any) -> "asyncio.Task[Any]":
        return self.loop.create_task(work, context=self.context.copy())


LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


def outside() -> contextvars.Context:
    """Of what no server does: the network, the shared store, clients."""
    return contextvars.Context()


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's own loop, but for its clock and its threads. Waiting costs no time."""

    current: "VirtualLoop | None" = None  # there is one at a time

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        VirtualLoop.current = self
        self.chance = chance
        self.now = 0.0
        self._selector = SimpleNamespace(select=self._wait)
        self._kept: list[Any] = []  # else what a dead server left would be closed, and go on with its `finally`
        self.set_task_factory(self._new_task)

    def time(self) -> float:
        return self.now

    def _wait(self, timeout: float | None) -> Sequence[Any]:
        assert timeout is not None, "everybody waits, and nothing will come"
        self.now += timeout
        return ()

    def _process_events(self, events: Sequence[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _new_task(self, loop: Any, work: Any, **options: Any) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._kept.append(task)
        return task

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        return self._asking(super()._call_soon(callback, args, context), context)  # type: ignore[misc]

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self._asking(super().call_at(when, callback, *args, context=context), context)

    def _asking(self, handle: Any, context: contextvars.Context | None) -> Any:
        life = LIFE.get() if context is None else context.get(LIFE)
        if life is not None:
            handle._callback = partial(life.run, handle, handle._callback)
        return handle

    def do_next(self, handles: Sequence[asyncio.Handle]) -> None:
        self._ready.extend(handles)  # type: ignore[attr-defined]

    # Threads.

    def start_thread(self, target: Callable[[], None]) -> None:
        thread = greenlet.greenlet(target)
        thread.gr_context = contextvars.copy_context()
        self._kept.append(thread)
        self.call_soon(self._switch_to, thread)

    def _switch_to(self, thread: greenlet.greenlet) -> None:
        thread.parent = greenlet.getcurrent()
        thread.switch()

    def park(self) -> None:
        """The thread waits until somebody wakes it."""
        greenlet.getcurrent().parent.switch()

    def pause(self, seconds: float) -> None:
        """The thread sleeps; in the loop itself nobody can."""
        thread = greenlet.getcurrent()
        if thread.parent is not None:
            self.call_later(seconds, self._switch_to, thread)
            self.park()

    def wake(self, thread: greenlet.greenlet) -> None:
        self.call_soon(self._switch_to, thread)

    def short(self) -> float:
        """Seconds that a thread takes for what it has to do, most times few."""
        return self.chance.choice((0.0, 0.0005, 0.002, 0.01)) * self.chance.random()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        future = self.create_future()

        def body() -> None:
            self.pause(self.short())
            try:
                result, error = func(*args), None
            except Exception as exc:
                result, error = None, exc
            self.pause(self.short())
            if not future.done():
                future.set_result(result) if error is None else future.set_exception(error)

        self.start_thread(body)
        return future


class Event:
    """`threading.Event` for one thread that waits."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: greenlet.greenlet | None = None

    def set(self) -> None:
        self._set = True
        if self._waiting is not None:
            _loop().wake(self._waiting)
            self._waiting = None

    def clear(self) -> None:
        self._set = False

    def wait(self) -> None:
        while not self._set:
            self._waiting = greenlet.getcurrent()
            _loop().park()
        _loop().pause(_loop().short())


class SimpleQueue:
    """`queue.SimpleQueue` for one thread that gets."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._filled = Event()

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._filled.set()

    def empty(self) -> bool:
        return not self._items

    def get(self) -> Any:
        while not self._items:
            self._filled.clear()
            self._filled.wait()
        return self._items.popleft()


class Thread:
    """`threading.Thread`."""

    def __init__(self, target: Callable[[], None], name: str = "", daemon: bool = True) -> None:
        self._target = target

    def start(self) -> None:
        _loop().start_thread(self._target)


class VirtualTime:
    """The module `time`, as the machine of whoever asks has it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        life = LIFE.get()
        return UPTIME + _loop().now - (life.slept if life else 0.0)

    def clock_gettime(self, clock: int) -> float:
        return UPTIME + _loop().now

    def perf_counter(self) -> float:
        return _loop().now

    def time(self) -> float:
        life = LIFE.get()
        return EPOCH + _loop().now + (life.skew if life else 0.0)

    def sleep(self, seconds: float) -> None:
        _loop().pause(seconds)


class ClockOfLife:
    """Each server's own `CLOCK`."""

    def __getattr__(self, name: str) -> Any:
        life = LIFE.get()
        return getattr(CLOCK if life is None else life.clock, name)


def _loop() -> VirtualLoop:
    assert VirtualLoop.current is not None
    return VirtualLoop.current


@contextmanager
def virtual(chance: random.Random, prefixes: Sequence[str]) -> Iterator[VirtualLoop]:
    """A loop; in the modules that begin with one of the prefixes, time, threads and secrets are the simulation's."""
    secrets = SimpleNamespace(
        randbits=chance.getrandbits, token_hex=lambda count: f"{chance.getrandbits(8 * count):0{2 * count}x}"
    )
    threading = SimpleNamespace(Thread=Thread, Event=Event, Lock=sys.modules["threading"].Lock)
    stand_ins = {"time": VirtualTime(), "secrets": secrets, "queue": SimpleNamespace(SimpleQueue=SimpleQueue)}
    replaced: list[tuple[Any, str, Any]] = []
    for module in [one for name, one in sys.modules.items() if name.startswith(tuple(prefixes))]:
        wanted: dict[str, Any] = {
            name: stand_in
            for name, stand_in in stand_ins.items()
            if vars(module).get(name) is sys.modules.get(name) and (name == "time" or "dnc_serve" in module.__name__)
        }
        if vars(module).get("CLOCK") is CLOCK:
            wanted["CLOCK"] = ClockOfLife()
        if module.__name__.endswith("engine.journal"):
            wanted["threading"] = threading
        for name, stand_in in wanted.items():
            replaced.append((module, name, vars(module)[name]))
            setattr(module, name, stand_in)
    try:
        yield VirtualLoop(chance)
    finally:
        VirtualLoop.current = None
        for module, name, former in replaced:
            setattr(module, name, former)
