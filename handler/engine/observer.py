"""What the engine tells of itself: metrics, traces, the log and watchers listen, and the engine knows none of them."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dnc_serve.handler.engine.requests import Applied, Chunk, Reset
from dnc_serve.handler.engine.session import Session

logger = logging.getLogger(__name__)


class Committed(NamedTuple):
    """A chunk or a reset that was applied, written as safely as promised, and answered."""

    session: Session
    request: Chunk | Reset
    applied: Applied | None  # None for a reset


class Observer:
    """Hears nothing; who listens overrides what concerns it. What is told is over: nobody can object."""

    def stepped(self, rows: int, tick_s: float) -> None:
        """So many rows were stepped together, a tick in so much time."""

    def committed(self, group: Sequence[Committed]) -> None:
        """These were committed together."""

    def replied_again(self, session: Session, chunk: Chunk, applied: Applied) -> None:
        """A chunk that had been applied before got its stored reply."""

    def recovered(self, timesteps: int) -> None:
        """So many timesteps were replayed from the journal."""

    def replayed_elsewhere(self, session: Session) -> None:
        """A session is replayed by other code than what computed it first."""

    def fell_back(self, snapshots: int) -> None:
        """So many damaged snapshots were passed over."""

    def evicted(self, tier: str) -> None:
        """A state left its tier: slot or host."""

    def ended(self, session: Session, why: str) -> None:
        """A session ended: deleted, idle, age; or moved, to another server."""

    def wrote(self, seconds: float) -> None:
        """A group commit took so long; the store is up."""

    def snapshotted(self, seconds: float) -> None:
        """A group of snapshots took so long to take and write."""

    def store_failed(self) -> None:
        """The store could not be written."""


class Observers(Observer):
    """Passes on to several, in their order, what each has an ear for; what fails in one keeps nothing from others."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = list(observers)
        self._find_listeners()

    def add(self, observer: Observer) -> None:
        self._observers.append(observer)
        self._find_listeners()

    def remove(self, observer: Observer) -> None:
        self._observers.remove(observer)
        self._find_listeners()

    def _find_listeners(self) -> None:
        for name in TOLD:
            listeners = [one for one in self._observers if getattr(type(one), name) is not getattr(Observer, name)]
            setattr(self, name, _passing_on(name, [getattr(one, name) for one in listeners]))


TOLD = [name for name in vars(Observer) if not name.startswith("_")]


def _passing_on(name: str, listeners: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def pass_on(*told: object) -> None:
        for listener in listeners:
            try:
                listener(*told)
            except Exception:
                logger.exception("%s failed", getattr(listener, "__qualname__", name))

    return pass_on
