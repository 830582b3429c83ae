"""TorchServe's door, when time is over: DEADLINE_EXCEEDED says that nothing was applied, and only when that is so."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc import StatusCode

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.api.blobs import exported
from tests.handler.api.native import ask
from tests.handler.api.syncs import held_syncs
from tests.handler.door import TIMEOUT, Door, chunk, error_info, open_door, refused
from tests.handler.harness import random_inputs

SECONDS = 0.3


@pytest.fixture(scope="module")
def shared_door(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(artifact_folder, tmp_path_factory.mktemp("state"), durability="sync") as door:
        yield door


@pytest.fixture
def door(shared_door: Door) -> Iterator[Door]:
    """With a session `s` at position 3, and no other."""
    shared_door.create("s")
    shared_door.step("s", random_inputs(0, 3))
    yield shared_door
    for session in shared_door.stub.ListSessions(pb.ListSessionsRequest(), timeout=TIMEOUT).sessions:
        shared_door.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.session_id), timeout=TIMEOUT)


def call_of(kind: str, door: Door) -> pb.Call:
    fork = pb.ForkSessionRequest(session_id="s", fork_session_id="t", position=3)
    return {
        "step": lambda: pb.Call(step=pb.StepRequest(chunk=chunk("s", random_inputs(1, 2), position=3))),
        "reset": lambda: pb.Call(
            reset_session=pb.ResetSessionRequest(reset=pb.Reset(session_id="s", position=3, experience=0))
        ),
        "create": lambda: pb.Call(create_session=pb.CreateSessionRequest(session_id="t", allow_existing=True)),
        "fork": lambda: pb.Call(fork_session=fork),
        "import": lambda: pb.Call(
            import_session=pb.ImportSessionRequest(session_id="t", data=exported(door, "s"))
        ),
        "delete": lambda: pb.Call(delete_session=pb.DeleteSessionRequest(session_id="s")),
    }[kind]()  # fmt: skip


def repeats(result: pb.CallResult) -> bool:
    """Whether the answer says that the call had been applied before."""
    return {
        "step": lambda: result.step.result.replayed,
        "reset_session": lambda: not result.reset_session.result.changed,
        "create_session": lambda: not result.create_session.created,
        "fork_session": lambda: not result.fork_session.created,
        "import_session": lambda: result.import_session.session.position == 3,  # either way
        "delete_session": lambda: not result.delete_session.deleted,
    }[result.WhichOneof("result")]()


@pytest.mark.parametrize("kind", ["step", "reset", "create", "fork", "import", "delete"])
def test_what_may_have_been_applied_is_not_said_to_be_given_up(
    door: Door, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = call_of(kind, door)
    with held_syncs(monkeypatch):
        result = ask(door, call, SECONDS)
    said_to_be_given_up = error_info(result.status).reason == "DEADLINE_EXCEEDED"  # only where it was very slow
    assert said_to_be_given_up or "not known" in result.status.message
    assert repeats(ask(door, call)) != said_to_be_given_up


@pytest.mark.parametrize("kind", ["step", "reset", "create", "fork", "import", "delete"])
def test_what_is_given_up_was_not_applied(door: Door, kind: str) -> None:
    call = call_of(kind, door)
    result = ask(door, call, 0.0)
    assert error_info(result.status).reason == "DEADLINE_EXCEEDED"
    assert (door.session("s").position, door.session("s").experience) == (3, 0)
    with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND):
        door.session("t")
