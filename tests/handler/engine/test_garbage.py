import gc
import weakref
from collections.abc import Iterator

import pytest

from dnc_serve.handler.engine import maintenance
from dnc_serve.handler.engine.maintenance import Garbage


class Node:
    """Something that may stand in a cycle."""

    def __init__(self) -> None:
        self.other: Node | None = None


@pytest.fixture(autouse=True)
def nothing_stays_set_aside() -> Iterator[None]:
    yield
    gc.unfreeze()


def a_cycle() -> Node:
    one, other = Node(), Node()
    one.other, other.other = other, one
    return one


def test_what_is_alive_is_looked_at_no_more() -> None:
    settled = Garbage()
    settled.settle()
    alive = Node()
    assert any(each is alive for each in gc.get_objects())
    settled.settle()
    assert not any(each is alive for each in gc.get_objects())


def test_a_cycle_that_died_young_is_freed_at_once() -> None:
    settled = Garbage()
    settled.settle()
    dead = weakref.ref(a_cycle())
    settled.settle()
    assert dead() is None


def test_a_cycle_that_was_set_aside_is_freed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = Garbage()
    settled.settle()
    cycle = a_cycle()
    settled.settle()
    dead = weakref.ref(cycle)
    del cycle
    gc.collect()
    assert dead() is not None
    now = maintenance.time.monotonic()
    monkeypatch.setattr(maintenance.time, "monotonic", lambda: now + maintenance.THAW_S)
    settled.settle()
    assert dead() is None
