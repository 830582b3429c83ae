"""A delete whose sync failed: everybody is told the same, before and after the store is back."""

import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.api.syncs import failing_syncs
from tests.handler.door import TIMEOUT, Door, open_door, refused
from tests.handler.harness import random_inputs


def delete(door: Door, session_id: str) -> bool:
    request = pb.DeleteSessionRequest(session_id=session_id)
    return door.stub.DeleteSession(request, timeout=TIMEOUT).deleted


def asked(door: Door, session_id: str) -> list[Callable[[], object]]:
    reset = pb.ResetSessionRequest(reset=pb.Reset(session_id=session_id))
    fork = pb.ForkSessionRequest(session_id=session_id, fork_session_id="fork")
    export = pb.ExportSessionRequest(session_id=session_id)
    watch = pb.WatchMemoryRequest(session_id=session_id)
    return [
        lambda: door.session(session_id),
        lambda: door.step(session_id, random_inputs(1, 2)),
        lambda: door.dump(session_id),
        lambda: door.dump(session_id, position=1),
        lambda: door.stub.ResetSession(reset, timeout=TIMEOUT),
        lambda: door.stub.ForkSession(fork, timeout=TIMEOUT),
        lambda: list(door.stub.ExportSession(export, timeout=TIMEOUT)),
        lambda: next(door.stub.WatchMemory(watch, timeout=TIMEOUT)),
    ]


@pytest.mark.parametrize("deletes_again", [True, False])
def test_a_session_whose_delete_could_not_be_synced_has_one_answer_for_all(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletes_again: bool
) -> None:
    with open_door(artifact_folder, tmp_path, durability="sync") as door:
        for session_id in ("s", "other"):
            door.create(session_id)
            door.step(session_id, random_inputs(0, 2))
        with failing_syncs(monkeypatch):
            with refused("STORE_UNAVAILABLE", StatusCode.UNAVAILABLE):
                delete(door, "s")
            for ask in asked(door, "s"):
                with refused("STORE_UNAVAILABLE", StatusCode.UNAVAILABLE):
                    ask()
            with refused("STORE_UNAVAILABLE", StatusCode.UNAVAILABLE):
                request = pb.CreateSessionRequest(session_id="s", allow_existing=True)
                door.stub.CreateSession(request, timeout=TIMEOUT)
            listed = door.stub.ListSessions(pb.ListSessionsRequest(), timeout=TIMEOUT).sessions
            assert [one.session_id for one in listed] == ["other"]
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                if deletes_again:
                    delete(door, "s")
                else:  # it is ended all the same
                    door.session("s")
            except grpc.RpcError as exc:
                if exc.code() is StatusCode.NOT_FOUND:
                    break
                assert exc.code() is StatusCode.UNAVAILABLE
            else:
                assert deletes_again
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for ask in asked(door, "s"):
            with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND) as info:
                ask()
            assert info["why"] == "deleted"
        assert not delete(door, "s")
        assert door.step("other", random_inputs(1, 2), position=2).position == 4
        assert door.create("s").position == 0
        assert door.step("s", random_inputs(0, 2), position=0).position == 2
    with open_door(artifact_folder, tmp_path) as door:
        assert door.session("s").position == 2
