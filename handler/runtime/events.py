"""What can happen to a running `dnc serve`, apart from what its worker says (`control.py`)."""

import queue
import signal
from dataclasses import dataclass

from dnc_serve.handler.runtime.child import Child
from dnc_serve.handler.runtime.control import WorkerEvent


@dataclass(frozen=True)
class StopAsked:
    """SIGTERM, Ctrl-C, or the terminal was closed."""


@dataclass(frozen=True)
class LoadFailed:
    """The child says that a worker could not load the model, or that it could not open a port."""

    child: Child


@dataclass(frozen=True)
class ChildEnded:
    """What `dnc serve` started has ended, by itself or killed."""

    child: Child


Event = StopAsked | LoadFailed | ChildEnded | WorkerEvent


class Stops:
    """Notes from the first moment on that a stop was asked for: as process 1 of a container, nobody else would."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self.events.put(StopAsked()))
