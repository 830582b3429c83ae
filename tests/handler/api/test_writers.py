"""Whoever shares a session by mistake finds out: only the writer that sent something is told that it was applied."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc import StatusCode
from grpc_status import rpc_status

from dnc_serve.handler.api.torchserve_calls import answer
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.api.test_native import JSON, context
from tests.handler.door import TIMEOUT, Door, chunk, error_info, open_door, refused
from tests.handler.harness import random_inputs
from tests.handler.store.conftest import RedisServer

ONE, OTHER, NOBODY = 2**64 - 1, 7, 0
FIRST, SECOND = random_inputs(1, 3), random_inputs(2, 2)

Open = Callable[..., "contextlib.AbstractContextManager[Door]"]


@pytest.fixture(params=["sqlite", "redis"])
def open_again(request: pytest.FixtureRequest, artifact_folder: Path, tmp_path: Path) -> Iterator[Open]:
    """Opens a door before the same store each time."""
    with contextlib.ExitStack() as stack:
        store = "sqlite"
        if request.param == "redis":
            (tmp_path / "redis").mkdir()
            redis = RedisServer(tmp_path / "redis")
            stack.callback(redis.kill)
            store = redis.url
        yield lambda **settings: open_door(artifact_folder, tmp_path / "state", store=store, **settings)


# The ways to send a chunk; each returns the result, or the status of a refusal.

Answer = pb.ChunkResult | status_pb2.Status


def unary(door: Door, message: pb.Chunk) -> Answer:
    try:
        return door.stub.Step(pb.StepRequest(chunk=message), timeout=TIMEOUT).result
    except grpc.RpcError as error:
        return rpc_status.from_call(error)


def streamed(door: Door, message: pb.Chunk) -> Answer:
    [response] = door.stream([pb.StreamRequest(chunk=message)])
    return response.error.status if response.HasField("error") else response.chunk


def through_torchserve(door: Door, message: pb.Chunk) -> Answer:
    row = {"data": pb.Call(step=pb.StepRequest(chunk=message)).SerializeToString()}
    [result] = answer(lambda calls: door.server.call(calls, TIMEOUT), [row], context({}))
    call = pb.CallResult.FromString(result)
    return call.status if call.HasField("status") else call.step.result


WAYS = (unary, streamed, through_torchserve)


def check_told_to(writer_id: int, door: Door, message: pb.Chunk, outputs: bytes) -> None:
    """The chunk's reply is given to this writer, at each door, and to nobody else."""
    position = door.session("s").position
    for way in WAYS:
        for asking in (ONE, OTHER, NOBODY):
            message.writer_id = asking
            told = way(door, message)
            if asking == writer_id:
                assert isinstance(told, pb.ChunkResult), told
                assert (told.replayed, told.outputs.data) == (True, outputs)
            else:
                assert isinstance(told, status_pb2.Status)
                info = error_info(told)
                assert info.reason == "STEP_CONFLICT"
                assert info.metadata["expected_position"] == str(position)
                assert "another writer" in told.message
    assert door.session("s").position == position


@pytest.mark.parametrize(
    ("kept", "writer_id"),
    [("in memory", ONE), ("in memory", NOBODY), ("in the journal", ONE), ("over a restart", ONE)],
)
def test_a_stored_reply_is_given_to_the_writer_that_sent_the_chunk(open_again: Open, kept: str, writer_id: int) -> None:
    window = 64 if kept == "in memory" else 1
    message = chunk("s", FIRST, position=0)
    with open_again(reply_window_chunks=window) as door:
        door.create("s")
        outputs = door.step("s", FIRST, position=0, writer_id=writer_id).outputs.data
        door.step("s", SECOND, position=3, writer_id=writer_id)
        if kept != "over a restart":
            check_told_to(writer_id, door, message, outputs)
            return
    with open_again() as door:
        check_told_to(writer_id, door, message, outputs)


def reset(door: Door, writer_id: int, position: int, experience: int) -> pb.ResetResult:
    message = pb.Reset(session_id="s", position=position, experience=experience, writer_id=writer_id)
    return door.stub.ResetSession(pb.ResetSessionRequest(reset=message), timeout=TIMEOUT).result


def check_resets(door: Door) -> None:
    """One writer ended the experiences 0, 1 and 2: the second with a chunk, the third with all else."""
    for position, experience in ((3, 0), (3, 1), (5, 2)):
        assert not reset(door, ONE, position, experience).changed
        for other in (OTHER, NOBODY):
            with refused("STEP_CONFLICT", StatusCode.ABORTED) as info:
                reset(door, other, position, experience)
            assert info["experience"] == "3"
    assert door.session("s").experience == 3


@pytest.mark.parametrize("kept", ["in memory", "in the journal", "over a restart"])
def test_a_reset_was_done_before_for_the_writer_that_sent_it(open_again: Open, kept: str) -> None:
    window = 64 if kept == "in memory" else 1
    with open_again(reply_window_chunks=window) as door:
        door.create("s")
        door.step("s", FIRST, position=0, writer_id=ONE)
        assert reset(door, ONE, 3, 0).changed
        door.step("s", SECOND, position=3, writer_id=ONE, reset_experience=True)
        everything = pb.Reset(session_id="s", writer_id=ONE, scope=pb.RESET_SCOPE_ALL)
        door.stub.ResetSession(pb.ResetSessionRequest(reset=everything), timeout=TIMEOUT)
        door.step("s", SECOND, position=5, writer_id=ONE)
        if kept != "over a restart":
            check_resets(door)
            return
    with open_again() as door:
        check_resets(door)


def test_a_reset_that_nobody_remembers_changes_nothing(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, durability="off", reply_window_chunks=1) as door:
        door.create("s")
        reset(door, ONE, 0, 0)
        door.step("s", FIRST, position=0, writer_id=ONE)
        assert not reset(door, OTHER, 0, 0).changed
        assert door.session("s").experience == 1


def test_what_was_sent_behind_a_conflict_is_not_applied_where_its_position_fits_by_chance(
    artifact_folder: Path, tmp_path: Path
) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        door.create("s")
        door.step("s", FIRST, position=0, writer_id=ONE)
        behind: dict[str, Any] = {"session_id": "s", "position": 3, "writer_id": OTHER, "pipelined": True}
        responses = door.stream(
            [
                pb.StreamRequest(chunk=chunk("s", FIRST, position=0, writer_id=OTHER)),
                pb.StreamRequest(chunk=chunk(inputs=SECOND, **behind)),
                pb.StreamRequest(reset=pb.Reset(experience=0, **behind)),
                pb.StreamRequest(chunk=chunk("s", SECOND, position=3, writer_id=OTHER)),  # it knows what it does
                pb.StreamRequest(chunk=chunk("s", SECOND, position=5, writer_id=OTHER, pipelined=True)),
            ]
        )
    reasons = [error_info(response.error.status).reason for response in responses if response.HasField("error")]
    assert reasons == ["STEP_CONFLICT", "STEP_GAP", "STEP_GAP"]
    assert [response.chunk.position for response in responses[3:]] == [5, 7]


def test_what_was_sent_behind_a_repetition_goes_on_though_something_failed_before(
    artifact_folder: Path, tmp_path: Path
) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        door.create("s")
        door.step("s", FIRST, position=0, writer_id=ONE)
        door.step("s", SECOND, position=3, writer_id=ONE)
        responses = door.stream(
            [
                pb.StreamRequest(chunk=chunk("s", -FIRST, position=0, writer_id=ONE)),
                pb.StreamRequest(chunk=chunk("s", -SECOND, position=3, writer_id=ONE, pipelined=True)),
                pb.StreamRequest(chunk=chunk("s", FIRST, position=0, writer_id=ONE)),
                pb.StreamRequest(chunk=chunk("s", SECOND, position=3, writer_id=ONE, pipelined=True)),
                pb.StreamRequest(chunk=chunk("s", FIRST, position=5, writer_id=ONE, pipelined=True)),
            ]
        )
    reasons = [error_info(response.error.status).reason for response in responses[:2]]
    assert reasons == ["STEP_CONFLICT", "STEP_GAP"]
    told = [(response.chunk.position, response.chunk.replayed) for response in responses[2:]]
    assert told == [(3, True), (5, True), (8, False)]


def test_json_names_its_writer_as_a_number_or_as_text(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        door.create("s")

        def step(writer_id: Any) -> Any:
            body = {"step": {"session_id": "s", "position": 0, "inputs": FIRST.tolist(), "writer_id": writer_id}}
            rows = [{"body": json.dumps(body).encode()}]
            headers = context({"Content-Type": JSON})
            [result] = answer(lambda calls: door.server.call(calls, TIMEOUT), rows, headers)
            return json.loads(result)

        assert not step(ONE)["step"]["result"]["replayed"]
        assert step(str(ONE))["step"]["result"]["replayed"]
        for other, reason in ((1, "STEP_CONFLICT"), (-1, "BAD_REQUEST"), (2**64, "BAD_REQUEST"), ("me", "BAD_REQUEST")):
            assert step(other)["status"]["details"][0]["reason"] == reason
