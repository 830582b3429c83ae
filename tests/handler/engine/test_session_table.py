"""The session table finds what a walk over all sessions finds, and does not walk."""

import random
import sys
from collections.abc import Callable
from itertools import islice
from types import FrameType
from typing import Any

import pytest

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.replies import Replies
from dnc_serve.handler.engine.session import Session, Status
from dnc_serve.handler.engine.session_table import SessionTable

MANY = 100_000
MOST_LINES = 4_000  # of the table's code, for a look that finds a few hundred


def new_session(session_id: str, owner: str = "", created_at: float = 0.0) -> Session:
    return Session(session_id, 1, "digest", owner, created_at, Replies(1, 1))


def new_table(at_most: int) -> SessionTable:
    return SessionTable(ServeConfig(max_sessions=at_most, max_tombstones=at_most), "digest", "fingerprint")


def walked(sessions: list[Session], owner: str, after: str, prefix: str) -> list[Session]:
    """What pages show, found the long way."""
    fitting = [one for one in sessions if one.owner == owner and one.session_id.startswith(prefix)]
    return sorted((one for one in fitting if one.session_id > after), key=lambda one: one.session_id)


def test_pages_and_ages_are_those_of_a_walk_however_sessions_come_and_go() -> None:
    chance = random.Random(1)
    table = new_table(1000)
    present: dict[str, Session] = {}
    for _ in range(2000):
        session_id = "".join(chance.choices("ab-~", k=chance.randint(1, 4)))
        if session_id in present:
            table.remove(present.pop(session_id))
        else:
            present[session_id] = new_session(session_id, chance.choice(["", "ann"]), chance.uniform(0, 100))
            table.add(present[session_id])
        sessions = list(present.values())
        assert table.count_of("ann") == sum(session.owner == "ann" for session in sessions)
        prefix, after = (chance.choice(["", "a", "b-", "~"]) for _ in range(2))
        expected = walked(sessions, "ann", after, prefix)
        page, more = table.page("ann", after, prefix, 3)
        assert page == expected[:3]
        assert more == (expected[2].session_id if len(expected) > 3 else "")
        overdue = [(session.session_id, why) for session, why in table.overdue(100.0, 0.0, 60.0)]
        old = sorted((session.created_at, session.session_id) for session in sessions if session.created_at <= 40)
        assert overdue == [(session_id, "age") for _, session_id in old]


def test_sessions_that_idle_are_found_by_their_last_commit() -> None:
    table = new_table(10)
    first, second, third = (new_session(name) for name in "abc")
    for session in (first, second, third):
        table.add(session)
    table.touch(first, 50.0)
    third.become(Status.QUEUED)
    assert list(table.overdue(100.0, 60.0, 0.0)) == [(second, "idle")]
    assert list(table.overdue(100.0, 60.0, 99.0)) == [
        (second, "idle"), (first, "age"), (second, "age"), (third, "age"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def full() -> SessionTable:
    table = new_table(MANY)
    for number in range(MANY):
        table.add(new_session(f"s-{number * 7919 % MANY}", "rare" if number % 1000 == 0 else "", float(number)))
    return table


LOOKS: dict[str, Callable[[SessionTable], object]] = {
    "the first page": lambda table: table.page("", "", "", 100),
    "a page in the middle": lambda table: table.page("", "s-5", "s-", 100),
    "a page of somebody who has few": lambda table: table.page("rare", "", "", 100),
    "nobody is too old": lambda table: list(table.overdue(1.0, 1e9, 1e9)),
    "all are too old": lambda table: list(islice(table.overdue(1e9, 1.0, 1.0), 256)),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_holds_up_nobody_however_many_sessions_there_are(full: SessionTable, look: str) -> None:
    lines = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    sys.settrace(count)
    try:
        LOOKS[look](full)
    finally:
        sys.settrace(None)
    assert lines < MOST_LINES
