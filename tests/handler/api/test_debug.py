"""Debug arrays of a chunk that was applied before: the same ones again, or a refusal; never none."""

from pathlib import Path

from grpc import StatusCode

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, chunk, open_door, refused
from tests.handler.harness import random_inputs


def arrays(result: pb.ChunkResult) -> dict[str, bytes]:
    return {name: array.data for name, array in result.debug.items()}


def steps(door: Door, session_id: str, *, debug: bool) -> list[pb.ChunkResult]:
    """Three chunks, the second behind a reset, the third with one of its own."""
    door.create(session_id)
    results = [door.step(session_id, random_inputs(0, 3), position=0, debug=debug)]
    reset = pb.Reset(session_id=session_id, position=3, experience=0)
    door.stub.ResetSession(pb.ResetSessionRequest(reset=reset), timeout=TIMEOUT)
    results.append(door.step(session_id, random_inputs(1, 2), position=3, debug=debug))
    results.append(door.step(session_id, random_inputs(2, 2), position=5, reset_experience=True, debug=debug))
    return results


def again(door: Door, session_id: str) -> list[pb.ChunkResult]:
    return [
        door.step(session_id, random_inputs(0, 3), position=0, debug=True),
        door.step(session_id, random_inputs(1, 2), position=3, debug=True),
        door.step(session_id, random_inputs(2, 2), position=5, reset_experience=True, debug=True),
    ]


def test_debug_of_a_stored_reply_is_what_it_would_have_been(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        first = steps(door, "asked-at-once", debug=True)
        steps(door, "asked-later", debug=False)
        for session_id in ("asked-at-once", "asked-later"):
            repeated = again(door, session_id)
            assert all(result.replayed for result in repeated)
            assert [result.outputs for result in repeated] == [result.outputs for result in first]
            assert [arrays(result) for result in repeated] == [arrays(result) for result in first]
        assert not door.step("asked-at-once", random_inputs(0, 3), position=0).debug
    with open_door(artifact_folder, tmp_path) as door:  # the replies come from the journal
        assert [arrays(result) for result in again(door, "asked-at-once")] == [arrays(result) for result in first]
        assert door.session("asked-at-once").position == 7


def test_debug_of_stored_replies_comes_in_order_on_a_stream(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        steps(door, "s", debug=False)
        sent = [(0, 3, 0, True, False), (3, 2, 1, False, False), (5, 2, 2, True, True), (7, 1, 3, False, False)]
        answers = door.stream(
            pb.StreamRequest(
                chunk=chunk("s", random_inputs(seed, timesteps), position=position, debug=debug, reset_experience=reset)
            )
            for position, timesteps, seed, debug, reset in sent
        )
        assert [answer.chunk.position for answer in answers] == [3, 5, 7, 8]
        assert [bool(answer.chunk.debug) for answer in answers] == [True, False, True, False]


def test_debug_that_can_not_be_had_again_is_refused(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, durability="off") as door:
        door.create("s")
        first = door.step("s", random_inputs(0, 3), position=0)
        with refused("REPLY_GONE", StatusCode.OUT_OF_RANGE):
            door.step("s", random_inputs(0, 3), position=0, debug=True)
        assert door.step("s", random_inputs(0, 3), position=0).outputs == first.outputs
        assert door.step("s", random_inputs(1, 1), position=3, debug=True).debug
