"""The streaming door: operations, and every refusal with its reason, code and nothing lost."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, chunk, error_info, open_door, outputs_of, refused
from tests.handler.harness import INPUT_SIZE, OUTPUT_SIZE, random_inputs


@pytest.fixture(scope="module")
def door(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    settings = {"max_chunk_timesteps": 50, "snapshot_every_timesteps": 20}
    with open_door(artifact_folder, tmp_path_factory.mktemp("state"), **settings) as door:
        yield door


@pytest.fixture
def session_id(door: Door, request: pytest.FixtureRequest) -> str:
    """A new session, named after the test."""
    session_id = request.node.name.translate(str.maketrans("[]/ ", "----"))[:100]
    door.create(session_id)
    return session_id


def test_the_model_says_what_it_is(door: Door) -> None:
    model = door.stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT)
    assert (model.inputs.shape, model.outputs.shape) == ([INPUT_SIZE], [OUTPUT_SIZE])
    assert len(model.model_digest) == 64
    assert (model.artifact, model.artifact_note) == ("row-kernel", "")
    assert model.durability == "async"
    assert model.max_chunk_timesteps == 50
    assert model.max_in_flight_chunks > 0


def test_health_and_reflection(door: Door) -> None:
    for service in ("", "dnc.v1.DncService", "inference.GRPCInferenceService"):
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(door.channel).Check(request, timeout=TIMEOUT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    services = ProtoReflectionDescriptorDatabase(door.channel).get_services()
    assert "dnc.v1.DncService" in services
    assert "grpc.health.v1.Health" in services


def test_a_session_is_created_once(door: Door) -> None:
    created = door.stub.CreateSession(pb.CreateSessionRequest(session_id="once"), timeout=TIMEOUT)
    assert created.created
    again = door.stub.CreateSession(pb.CreateSessionRequest(session_id="once", allow_existing=True), timeout=TIMEOUT)
    assert not again.created
    assert again.session.incarnation == created.session.incarnation
    with refused("SESSION_EXISTS", StatusCode.ALREADY_EXISTS):
        door.create("once")


def test_sessions_are_listed_in_pages(door: Door) -> None:
    names = [f"page-{number:02}" for number in range(7)]
    for name in names:
        door.create(name)
    listed, token = [], ""
    while True:
        page = door.stub.ListSessions(
            pb.ListSessionsRequest(prefix="page-", page_size=3, page_token=token), timeout=TIMEOUT
        )
        assert len(page.sessions) <= 3
        listed += [session.session_id for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert listed == names
    with refused("BAD_REQUEST", StatusCode.INVALID_ARGUMENT):
        door.stub.ListSessions(pb.ListSessionsRequest(page_size=1001), timeout=TIMEOUT)


def test_a_deleted_session_is_another_answer_than_an_unknown_one(door: Door, session_id: str) -> None:
    request = pb.DeleteSessionRequest(session_id=session_id)
    assert door.stub.DeleteSession(request, timeout=TIMEOUT).deleted
    assert not door.stub.DeleteSession(request, timeout=TIMEOUT).deleted
    with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND) as info:
        door.session(session_id)
    assert info["why"] == "deleted"
    assert info["ended_at"].startswith("20")
    with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND) as info:
        door.session("never-was")
    assert "why" not in info


@pytest.mark.parametrize("bad", ["", "a b", "../x", "ü", "x" * 10_000])
def test_an_odd_id_is_refused(door: Door, bad: str) -> None:
    with refused("BAD_ID", StatusCode.INVALID_ARGUMENT):
        door.create(bad)
    with refused("BAD_ID", StatusCode.INVALID_ARGUMENT):
        door.step(bad, random_inputs(0, 1))


def test_the_same_bits_through_step_and_stream(door: Door, session_id: str) -> None:
    inputs = random_inputs(1, 12)
    by_steps = [outputs_of(door.step(session_id, inputs[t : t + 3], position=t)) for t in range(0, 12, 3)]
    door.create(f"{session_id}-streamed")
    responses = door.stream(
        pb.StreamRequest(chunk=chunk(f"{session_id}-streamed", inputs[t : t + 2], position=t, request_id=t))
        for t in range(0, 12, 2)
    )
    assert [response.chunk.request_id for response in responses] == list(range(0, 12, 2))
    by_stream = [outputs_of(response.chunk) for response in responses]
    assert np.concatenate(by_steps).tobytes() == np.concatenate(by_stream).tobytes()


BAD_CHUNKS = {
    "width": (pb.Array(shape=[1, 3], data=bytes(12)), "BAD_SHAPE"),
    "dtype": (pb.Array(shape=[1, INPUT_SIZE], data=bytes(4 * INPUT_SIZE), dtype=42), "BAD_DTYPE"),
    "nan": (pb.Array(shape=[1, INPUT_SIZE], data=np.full(INPUT_SIZE, np.nan, "<f4").tobytes()), "NOT_FINITE"),
    "infinity": (pb.Array(shape=[1, INPUT_SIZE], data=np.full(INPUT_SIZE, np.inf, "<f4").tobytes()), "NOT_FINITE"),
    "no timestep": (pb.Array(shape=[0, INPUT_SIZE]), "BAD_SHAPE"),
    "too long": (pb.Array(shape=[51, INPUT_SIZE], data=bytes(51 * 4 * INPUT_SIZE)), "CHUNK_TOO_LONG"),
    "bytes": (pb.Array(shape=[2, INPUT_SIZE], data=bytes(4 * INPUT_SIZE)), "BAD_SHAPE"),
}


@pytest.mark.parametrize("bad", BAD_CHUNKS)
def test_a_bad_chunk_is_refused_and_nothing_is_lost(door: Door, session_id: str, bad: str) -> None:
    array, reason = BAD_CHUNKS[bad]
    door.step(session_id, random_inputs(0, 3))
    with refused(reason, StatusCode.INVALID_ARGUMENT) as info:
        door.stub.Step(pb.StepRequest(chunk=pb.Chunk(session_id=session_id, inputs=array)), timeout=TIMEOUT)
    assert info["expected"] and info["got"]
    assert door.session(session_id).position == 3


def test_a_bad_message_ends_neither_the_stream_nor_other_sessions(door: Door, session_id: str) -> None:
    other = f"{session_id}-other"
    door.create(other)
    good = random_inputs(0, 2)
    bad = pb.Array(shape=[1, 3], data=bytes(12))
    responses = door.stream(
        [
            pb.StreamRequest(chunk=chunk(session_id, good, position=0)),
            pb.StreamRequest(chunk=pb.Chunk(session_id=session_id, position=2, inputs=bad, request_id=7)),
            pb.StreamRequest(chunk=chunk(other, good, position=0)),
            pb.StreamRequest(),
            pb.StreamRequest(chunk=chunk("unknown", good, position=0)),
            pb.StreamRequest(chunk=chunk(session_id, good, position=2)),
        ]
    )
    kinds = [(r.WhichOneof("message"), r.chunk.session_id or r.error.session_id) for r in responses]
    assert sorted(kinds) == sorted(
        [
            ("chunk", session_id),
            ("error", session_id),
            ("chunk", other),
            ("error", ""),
            ("error", "unknown"),
            ("chunk", session_id),
        ]
    )
    assert door.session(session_id).position == 4
    assert door.session(other).position == 2


def test_several_messages_in_one_are_answered_several_in_one(door: Door, session_id: str) -> None:
    inputs = random_inputs(0, 24)
    other = f"{session_id}-other"
    door.create(other)
    requests = [
        pb.StreamRequest(chunk=chunk(name, inputs[t : t + 2], position=t))
        for t in range(0, 24, 2)
        for name in (session_id, other)
    ]
    requests.insert(5, pb.StreamRequest(batch=pb.RequestBatch()))  # a batch within a batch
    answers = door.stream([pb.StreamRequest(batch=pb.RequestBatch(requests=requests))])
    assert len(answers) < len(requests)
    responses = [
        one
        for answer in answers
        for one in (answer.batch.responses if answer.WhichOneof("message") == "batch" else [answer])
    ]
    outputs = {
        name: np.concatenate([outputs_of(one.chunk) for one in responses if one.chunk.session_id == name])
        for name in (session_id, other)
    }
    assert outputs[session_id].shape == (24, OUTPUT_SIZE)
    assert outputs[session_id].tobytes() == outputs[other].tobytes()
    [refusal] = [one.error for one in responses if one.WhichOneof("message") == "error"]
    assert "a batch within a batch" in refusal.status.message


def test_what_follows_an_error_on_a_stream_is_refused(door: Door, session_id: str) -> None:
    """Chunks without a position would otherwise be applied where they don't belong."""
    good = random_inputs(0, 1)
    responses = door.stream(
        [
            pb.StreamRequest(chunk=chunk(session_id, good, request_id=1)),
            pb.StreamRequest(chunk=chunk(session_id, random_inputs(0, 51), request_id=2)),
            pb.StreamRequest(chunk=chunk(session_id, good, request_id=3)),
            pb.StreamRequest(reset=pb.Reset(session_id=session_id, request_id=4)),
            pb.StreamRequest(dump=pb.Dump(session_id=session_id, request_id=5)),
        ]
    )
    assert in_short(responses) == [(1, 1), (2, "CHUNK_TOO_LONG"), (3, "STEP_GAP"), (4, "STEP_GAP"), (5, "STEP_GAP")]
    assert door.session(session_id).experience == 0
    [response] = door.stream([pb.StreamRequest(chunk=chunk(session_id, good, position=1))])
    assert response.chunk.position == 2


def test_what_came_before_an_error_on_a_stream_is_applied_and_answered_before_it(door: Door, session_id: str) -> None:
    """All is read in one go, so that much is queued still when the bad chunk is refused."""
    inputs = random_inputs(0, 200)
    chunks = [chunk(session_id, inputs[t : t + 40], request_id=1 + t // 40) for t in range(0, 160, 40)]
    chunks += [
        pb.Chunk(session_id=session_id, inputs=pb.Array(shape=[1, 3], data=bytes(12)), request_id=5),
        chunk(session_id, inputs[160:170], request_id=6),
        chunk(session_id, inputs[160:170], position=120, request_id=7),
        chunk(session_id, inputs[160:170], request_id=8),
        chunk(session_id, inputs[160:170], position=160, request_id=9),  # from here on, it is clear where it goes on
        chunk(session_id, inputs[170:180], request_id=10),
    ]
    requests = [pb.StreamRequest(chunk=one) for one in chunks]
    [*batches] = door.stream([pb.StreamRequest(batch=pb.RequestBatch(requests=requests))])
    responses = [one for batch in batches for one in (batch.batch.responses or [batch])]
    assert in_short(responses) == [
        (1, 40), (2, 80), (3, 120), (4, 160), (5, "BAD_SHAPE"), (6, "STEP_GAP"), (7, "STEP_CONFLICT"), (8, "STEP_GAP"),
        (9, 170), (10, 180),
    ]  # fmt: skip
    door.create(f"{session_id}-alone")
    alone = [outputs_of(door.step(f"{session_id}-alone", inputs[t : t + 20])) for t in range(0, 180, 20)]
    answered = [outputs_of(response.chunk) for response in responses if response.WhichOneof("message") == "chunk"]
    assert np.concatenate(answered).tobytes() == np.concatenate(alone).tobytes()


def in_short(responses: list[pb.StreamResponse]) -> list[tuple[int, int | str]]:
    """Of each response, the request's id and the position after it, or why it was refused."""
    return [
        (one.error.request_id, error_info(one.error.status).reason)
        if one.WhichOneof("message") == "error"
        else (one.chunk.request_id, one.chunk.position)
        for one in responses
    ]


def test_gaps_conflicts_and_replacements(door: Door, session_id: str) -> None:
    inputs = random_inputs(0, 4)
    first = door.step(session_id, inputs, position=0)
    with refused("STEP_GAP", StatusCode.FAILED_PRECONDITION) as info:
        door.step(session_id, inputs, position=6)
    assert info["expected_position"] == "4"
    for position, other in ((0, random_inputs(9, 4)), (0, inputs[:3]), (2, inputs)):
        with refused("STEP_CONFLICT", StatusCode.ABORTED) as info:
            door.step(session_id, other, position=position)
        assert info["expected_position"] == "4"
    with refused("SESSION_REPLACED", StatusCode.FAILED_PRECONDITION) as info:
        door.step(session_id, inputs, position=4, incarnation=first.incarnation ^ 1)
    assert int(info["incarnation"]) == first.incarnation
    again = door.step(session_id, inputs, position=0, incarnation=first.incarnation)
    assert again.replayed
    assert again.outputs == first.outputs
    assert door.session(session_id).position == 4


def test_reset_experience_keeps_controller_and_read_vectors(door: Door, session_id: str) -> None:
    door.step(session_id, random_inputs(0, 6))
    before = door.dump(session_id)
    result = door.stub.ResetSession(
        pb.ResetSessionRequest(reset=pb.Reset(session_id=session_id, position=6, experience=0)), timeout=TIMEOUT
    ).result
    assert result.changed
    assert (result.session.position, result.session.experience) == (6, 1)
    after = door.dump(session_id)
    for name in ("controller_hidden", "controller_cell", "read_vectors"):
        assert after[name].tobytes() == before[name].tobytes(), name
    for name in ("memory", "link_matrix", "precedence", "read_weights", "write_weights", "usage_vector"):
        assert before[name].any(), name
        assert not after[name].any(), name
    again = door.stub.ResetSession(
        pb.ResetSessionRequest(reset=pb.Reset(session_id=session_id, position=6, experience=0)), timeout=TIMEOUT
    ).result
    assert not again.changed
    assert again.session.experience == 1


def test_reset_all_is_as_new(door: Door, session_id: str) -> None:
    inputs = random_inputs(0, 6)
    first = door.step(session_id, inputs)
    door.stub.ResetSession(
        pb.ResetSessionRequest(reset=pb.Reset(session_id=session_id, scope=pb.RESET_SCOPE_ALL)), timeout=TIMEOUT
    )
    assert not any(array.any() for array in door.dump(session_id).values())
    again = door.step(session_id, inputs, position=6)
    assert again.outputs == first.outputs
    assert (again.position, again.experience) == (12, 1)


def test_a_reset_that_was_overtaken_changes_nothing(door: Door, session_id: str) -> None:
    door.step(session_id, random_inputs(0, 3))
    for position, reason, code in (
        (0, "STEP_CONFLICT", StatusCode.ABORTED),
        (9, "STEP_GAP", StatusCode.FAILED_PRECONDITION),
    ):
        with refused(reason, code):
            reset = pb.Reset(session_id=session_id, position=position, experience=0)
            door.stub.ResetSession(pb.ResetSessionRequest(reset=reset), timeout=TIMEOUT)
    assert door.session(session_id).experience == 0


def test_a_reset_on_a_chunk_is_one_operation(door: Door, session_id: str) -> None:
    inputs, more = random_inputs(0, 5), random_inputs(1, 5)
    door.step(session_id, inputs)
    door.stub.ForkSession(
        pb.ForkSessionRequest(session_id=session_id, fork_session_id=f"{session_id}-two"), timeout=TIMEOUT
    )
    one = door.step(session_id, more, reset_experience=True, position=5)
    again = door.step(session_id, more, reset_experience=True, position=5)
    assert again.replayed
    door.stub.ResetSession(pb.ResetSessionRequest(reset=pb.Reset(session_id=f"{session_id}-two")), timeout=TIMEOUT)
    two = door.step(f"{session_id}-two", more)
    assert one.outputs == two.outputs == again.outputs
    assert one.experience == two.experience == again.experience == 1


def test_resets_and_dumps_come_in_order_on_a_stream(door: Door, session_id: str) -> None:
    inputs = random_inputs(0, 4)
    responses = door.stream(
        [
            pb.StreamRequest(chunk=chunk(session_id, inputs, position=0)),
            pb.StreamRequest(dump=pb.Dump(session_id=session_id, names=["memory", "usage_vector"], request_id=1)),
            pb.StreamRequest(reset=pb.Reset(session_id=session_id, position=4, experience=0)),
            pb.StreamRequest(dump=pb.Dump(session_id=session_id, names=["memory"], request_id=2)),
            pb.StreamRequest(chunk=chunk(session_id, inputs, position=4)),
        ]
    )
    kinds = [response.WhichOneof("message") for response in responses]
    assert kinds == ["chunk", "dump", "dump", "reset", "dump", "chunk"]
    filled, empty = responses[1].dump, responses[4].dump
    assert (filled.name, filled.request_id, filled.last) == ("memory", 1, False)
    assert np.frombuffer(filled.data, "<f4").any()
    assert not np.frombuffer(empty.data, "<f4").any()


def test_a_look_at_an_earlier_position_comes_in_order_on_a_stream(door: Door, session_id: str) -> None:
    inputs = random_inputs(0, 80)
    requests = [
        pb.StreamRequest(chunk=chunk(session_id, inputs[:40], position=0)),
        pb.StreamRequest(dump=pb.Dump(session_id=session_id, names=["memory"], position=13)),
        pb.StreamRequest(dump=pb.Dump(session_id=session_id, position=81)),  # it fails, and skips nothing
        pb.StreamRequest(chunk=chunk(session_id, inputs[40:])),
    ]
    [*batches] = door.stream([pb.StreamRequest(batch=pb.RequestBatch(requests=requests))])
    responses = [one for batch in batches for one in (batch.batch.responses or [batch])]
    assert [response.WhichOneof("message") for response in responses] == ["chunk", "dump", "error", "chunk"]
    door.create(f"{session_id}-short")
    door.step(f"{session_id}-short", inputs[:13])
    assert responses[1].dump.data == door.dump(f"{session_id}-short")["memory"].tobytes()
    assert responses[3].chunk.position == 80


def test_a_dump_of_an_unknown_name_says_which_there_are(door: Door, session_id: str) -> None:
    with refused("BAD_REQUEST", StatusCode.INVALID_ARGUMENT):
        door.dump(session_id, names=["memori"])


def test_debug_comes_with_the_chunk(door: Door, session_id: str) -> None:
    result = door.step(session_id, random_inputs(0, 3), debug=True)
    assert set(result.debug) == {
        "memory", "link_matrix", "precedence", "read_weights", "write_weights", "usage_vector",
    }  # fmt: skip
    assert list(result.debug["memory"].shape) == [3 * 2, 12 * 6]
    assert list(result.debug["link_matrix"].shape) == [3 * 2, 12 * 12]


def test_forks_and_earlier_positions(door: Door, session_id: str) -> None:
    inputs = random_inputs(0, 40)
    outputs = np.concatenate([outputs_of(door.step(session_id, inputs[t : t + 8])) for t in range(0, 40, 8)])
    fork_id = f"{session_id}-fork"
    request = pb.ForkSessionRequest(session_id=session_id, fork_session_id=fork_id, position=13)
    fork = door.stub.ForkSession(request, timeout=TIMEOUT)
    assert fork.created and fork.session.position == 13
    repeated = door.stub.ForkSession(request, timeout=TIMEOUT)
    assert not repeated.created
    assert repeated.session.incarnation == fork.session.incarnation
    went_on = outputs_of(door.step(fork_id, inputs[13:], position=13))
    assert went_on.tobytes() == outputs[13:].tobytes()
    assert door.session(session_id).position == 40
    with refused("SESSION_EXISTS", StatusCode.ALREADY_EXISTS):
        door.stub.ForkSession(
            pb.ForkSessionRequest(session_id=session_id, fork_session_id=fork_id, position=14), timeout=TIMEOUT
        )
    earlier = door.dump(session_id, position=13)
    door.stub.ForkSession(
        pb.ForkSessionRequest(session_id=session_id, fork_session_id=f"{fork_id}-2", position=13), timeout=TIMEOUT
    )
    assert all(door.dump(f"{fork_id}-2")[name].tobytes() == array.tobytes() for name, array in earlier.items())
    with refused("STEP_GAP", StatusCode.FAILED_PRECONDITION):
        door.dump(session_id, position=41)


def test_export_and_import(door: Door, session_id: str) -> None:
    inputs = random_inputs(0, 9)
    door.step(session_id, inputs)
    parts = list(door.stub.ExportSession(pb.ExportSessionRequest(session_id=session_id), timeout=TIMEOUT))
    blob = b"".join(part.data for part in parts)
    assert parts[0].total_bytes == len(blob)
    half = len(blob) // 2

    def messages(session: str, data: bytes, total: int) -> Iterator[pb.ImportSessionRequest]:
        yield pb.ImportSessionRequest(session_id=session, total_bytes=total, data=data[:half])
        yield pb.ImportSessionRequest(data=data[half:])

    imported = door.stub.ImportSession(messages(f"{session_id}-copy", blob, len(blob)), timeout=TIMEOUT)
    assert imported.session.position == 9
    more = random_inputs(1, 5)
    assert door.step(session_id, more).outputs == door.step(f"{session_id}-copy", more).outputs
    flipped = bytearray(blob)
    flipped[-5] ^= 1
    for data, total in ((bytes(flipped), len(blob)), (blob[:-1], len(blob)), (blob, 2**50), (b"", 0)):
        with refused("BAD_BLOB", StatusCode.INVALID_ARGUMENT):
            door.stub.ImportSession(messages(f"{session_id}-bad", data, total), timeout=TIMEOUT)
    with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND):
        door.session(f"{session_id}-bad")


def test_a_stream_that_half_closes_at_once_ends_well(door: Door) -> None:
    assert door.stream([]) == []


def test_a_client_that_goes_away_takes_nobody_with_it(door: Door, session_id: str) -> None:
    inputs = random_inputs(0, 50)
    call = door.stub.Stream(
        iter([pb.StreamRequest(chunk=chunk(session_id, inputs, position=50 * n)) for n in range(40)]), timeout=TIMEOUT
    )
    next(call)
    call.cancel()
    position = door.session(session_id).position
    assert position % 50 == 0
    assert door.step(session_id, inputs[:1]).position >= position + 1


def test_a_deadline_that_has_passed_applies_nothing(door: Door, session_id: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.stub.Step(pb.StepRequest(chunk=chunk(session_id, random_inputs(0, 50))), timeout=-1.0)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert door.session(session_id).position == 0


def test_watching_shows_the_present_and_what_comes(door: Door, session_id: str) -> None:
    door.step(session_id, random_inputs(0, 2))
    frames = door.stub.WatchMemory(
        pb.WatchMemoryRequest(session_id=session_id, names=["usage_vector"]), timeout=TIMEOUT
    )
    assert next(frames).position == 2
    door.step(session_id, random_inputs(1, 3))
    frame = next(frames)
    assert frame.position == 5
    usage = np.frombuffer(frame.arrays["usage_vector"].array.data, "<f4")
    assert usage.tobytes() == door.dump(session_id, names=["usage_vector"])["usage_vector"].tobytes()
    frames.cancel()
