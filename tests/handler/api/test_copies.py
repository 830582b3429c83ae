"""Forks and imports: repeated they recognise themselves, made again after a delete they are others."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from grpc import StatusCode

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.api.blobs import exported, imported
from tests.handler.door import TIMEOUT, Door, open_door, refused
from tests.handler.harness import random_inputs

Open = Callable[[], AbstractContextManager[Door]]


@pytest.fixture(params=["sqlite", "redis", "off"])
def opened(request: pytest.FixtureRequest, artifact_folder: Path, tmp_path: Path) -> Iterator[Open]:
    """Opens a server with always the same store."""
    settings = {"durability": "off"} if request.param == "off" else {}
    if request.param == "redis":
        settings = {"store": request.getfixturevalue("redis_server").url, "lease_s": 2.0}
    yield partial(open_door, artifact_folder, tmp_path / "state", **settings)


def fork(door: Door, position: int | None = None) -> pb.ForkSessionResponse:
    request = pb.ForkSessionRequest(session_id="source", fork_session_id="copy", position=position)
    return door.stub.ForkSession(request, timeout=TIMEOUT)


def delete(door: Door, incarnation: int | None = None) -> bool:
    request = pb.DeleteSessionRequest(session_id="copy", incarnation=incarnation)
    return door.stub.DeleteSession(request, timeout=TIMEOUT).deleted


@pytest.mark.parametrize("kind", ["fork", "import"])
def test_a_copy_made_again_after_its_delete_is_another_session(opened: Open, kind: str) -> None:
    with opened() as door:
        door.create("source")
        door.step("source", random_inputs(0, 3))
        blob = exported(door, "source")

        def make() -> pb.Session:
            return fork(door).session if kind == "fork" else imported(door, "copy", blob)

        lives = []
        for _ in range(3):
            life = make()
            lives.append(life.incarnation)
            assert make().incarnation == life.incarnation  # repeated, it is the same
            assert door.step("copy", random_inputs(1, 2), position=3, incarnation=life.incarnation).position == 5
            assert delete(door)
            assert not delete(door)  # so is its delete
        assert len(set(lives)) == 3
        present = make()
        for late in lives:
            with refused("SESSION_REPLACED", StatusCode.FAILED_PRECONDITION) as info:
                door.step("copy", random_inputs(1, 2), position=3, incarnation=late)
            assert int(info["incarnation"]) == present.incarnation
            with refused("SESSION_REPLACED", StatusCode.FAILED_PRECONDITION):
                delete(door, late)
            with refused("SESSION_REPLACED", StatusCode.FAILED_PRECONDITION):
                reset = pb.Reset(session_id="copy", incarnation=late)
                door.stub.ResetSession(pb.ResetSessionRequest(reset=reset), timeout=TIMEOUT)
        assert door.session("copy").position == 3
        assert door.step("copy", random_inputs(1, 2), position=3, incarnation=present.incarnation).position == 5


def test_a_repeated_copy_recognises_itself_until_something_else_stands_there(opened: Open) -> None:
    with opened() as door:
        door.create("source")
        door.step("source", random_inputs(0, 3))
        blob = exported(door, "source")
        first = fork(door, position=3)
        assert first.created
        door.step("copy", random_inputs(1, 2))
        assert not fork(door, position=3).created
        door.step("source", random_inputs(1, 1))
        with refused("SESSION_EXISTS", StatusCode.ALREADY_EXISTS):
            fork(door)  # of another position
        with refused("SESSION_EXISTS", StatusCode.ALREADY_EXISTS):
            imported(door, "copy", blob)
        delete(door)
        door.create("copy")
        with refused("SESSION_EXISTS", StatusCode.ALREADY_EXISTS):
            fork(door, position=4)


@pytest.mark.parametrize("opened", ["sqlite", "redis"], indirect=True)
def test_a_copy_recognises_itself_after_a_restart(opened: Open) -> None:
    with opened() as door:
        door.create("source")
        door.step("source", random_inputs(0, 3))
        former = fork(door).session.incarnation
        delete(door)
        made = fork(door, position=3).session.incarnation
    with opened() as door:
        again = fork(door, position=3)
        assert (again.created, again.session.incarnation) == (False, made)
        with refused("SESSION_REPLACED", StatusCode.FAILED_PRECONDITION):
            door.step("copy", random_inputs(1, 2), position=3, incarnation=former)
