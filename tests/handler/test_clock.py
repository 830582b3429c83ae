"""A system's clock that is set, forth and back, ends nothing and forgets nothing."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from dnc_serve.handler.api.access import Access
from dnc_serve.handler.clock import CLOCK, LASTING_S, Clock
from dnc_serve.handler.engine.maintenance import Maintenance
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import Door, open_door, refused
from tests.handler.harness import random_inputs

DAY_S = 86_400.0
IDLE_S, AGE_S = 7 * DAY_S, 30 * DAY_S


class Hands:
    """What the two clocks show, moved by hand."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self._wall, self._monotonic = clock.wall(), clock.monotonic()
        monkeypatch.setattr(clock, "wall", lambda: self._wall)
        monkeypatch.setattr(clock, "monotonic", lambda: self._monotonic)

    def pass_by(self, seconds: float) -> None:
        self._wall += seconds
        self._monotonic += seconds

    def set(self, seconds: float) -> None:
        """Moves the system's clock alone."""
        self._wall += seconds


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hands]:
    """Of the server's clock, which is another afterwards."""
    for name, value in vars(Clock()).items():
        monkeypatch.setattr(CLOCK, name, value)
    return Hands(CLOCK, monkeypatch)


def look(door: Door) -> None:
    """What the server's maintenance does every second, and every half minute."""

    async def maintenance() -> None:
        own = Maintenance(door.server._models.default.engine)
        own.expire()
        await own.retain()

    door.server._await(maintenance())


def ids(door: Door) -> list[str]:
    return [session.session_id for session in door.stub.ListSessions(pb.ListSessionsRequest(), timeout=30).sessions]


@pytest.mark.parametrize("days", [8, 40, 365 * 50, -8, -365 * 50])
@pytest.mark.parametrize("lasts_s", [2.5, 2 * LASTING_S])
def test_a_step_ends_no_session_and_forgets_none(
    days: float, lasts_s: float, hands: Hands, artifact_folder: Path, tmp_path: Path
) -> None:
    settings = {"idle_timeout_s": IDLE_S, "max_age_s": AGE_S, "tombstone_days": 7, "history_hours": 1}
    with open_door(artifact_folder, tmp_path, **settings) as door:
        for name in ("before", "during", "deleted"):
            door.create(name)
            door.step(name, random_inputs(0, 3))
        door.stub.DeleteSession(pb.DeleteSessionRequest(session_id="deleted"), timeout=30)
        earliest = door.session("before").earliest_position
        hands.set(days * DAY_S)
        for _ in range(5):
            hands.pass_by(lasts_s / 5)
            look(door)
        door.step("during", random_inputs(1, 3))
        look(door)
        assert ids(door) == ["before", "during"]
        hands.set(-days * DAY_S)
        for _ in range(5):
            hands.pass_by(lasts_s / 5)
            look(door)
        assert ids(door) == ["before", "during"]
        assert door.step("before", random_inputs(2, 1), position=3).position == 4
        assert door.step("during", random_inputs(2, 1), position=6).position == 7
        assert door.session("before").earliest_position == earliest
        assert door.server._models.default.engine.table.tombstone("deleted") is not None
        assert "deleted" in {
            head.session_id for head in door.server._models.default.engine.journal.store.heads() if head.ended
        }
    with open_door(artifact_folder, tmp_path, **settings) as door:  # and what was recorded is no older for it
        look(door)
        assert ids(door) == ["before", "during"]


def test_time_that_passed_does_end_them(hands: Hands, artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, idle_timeout_s=IDLE_S, max_age_s=AGE_S) as door:
        door.create("idle")
        door.create("old")
        for _ in range(5):
            hands.pass_by(6 * DAY_S)
            door.step("old", random_inputs(0, 1))
            look(door)
            hands.set(3 * DAY_S)
        with refused("SESSION_EXPIRED", grpc.StatusCode.NOT_FOUND) as metadata:
            door.session("idle")
        assert metadata["why"] == "idle"
        hands.pass_by(DAY_S)
        look(door)
        with refused("SESSION_EXPIRED", grpc.StatusCode.NOT_FOUND) as metadata:
            door.session("old")
        assert metadata["why"] == "age"


def test_a_session_that_idled_while_no_server_ran_is_ended(hands: Hands, artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, idle_timeout_s=IDLE_S) as door:
        door.create("left")
    hands.pass_by(8 * DAY_S)
    with open_door(artifact_folder, tmp_path, idle_timeout_s=IDLE_S) as door:
        look(door)
        assert ids(door) == []


def test_stamps_follow_a_clock_that_was_set_right(hands: Hands, artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        made = door.create("s").created.seconds
        hands.set(8 * DAY_S)
        assert door.session("s").created.seconds == made
        for _ in range(3):
            hands.pass_by(LASTING_S)
            look(door)
        assert door.session("s").created.seconds == made + int(8 * DAY_S)
        assert door.session("s").created == door.session("s").created


def test_a_token_expires_when_its_time_has_come_and_not_by_a_step(tmp_path: Path, hands: Hands) -> None:
    expires = datetime.fromtimestamp(CLOCK.now() + DAY_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    digest = hashlib.sha256(b"secret").hexdigest()
    (tmp_path / "tokens.toml").write_text(f'[[token]]\nname = "a"\nsha256 = "{digest}"\nexpires = {expires}\n')
    access = Access(str(tmp_path / "tokens.toml"))
    hands.set(8 * DAY_S)
    hands.pass_by(2.5)
    assert access.grant_of_token("secret").owner == "a"
    hands.set(-8 * DAY_S)
    hands.pass_by(DAY_S)
    hands.set(-8 * DAY_S)
    with pytest.raises(ServeError, match="expired"):
        access.grant_of_token("secret")
