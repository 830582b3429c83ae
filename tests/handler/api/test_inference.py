"""Triton's protocol in its raw messages: sequences, exactly once, and every refusal."""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from dnc_serve.handler.arrays import Float32
from dnc_serve.proto.dnc.v1 import dnc_pb2
from dnc_serve.proto.inference import inference_pb2 as pb
from dnc_serve.proto.inference import inference_pb2_grpc
from tests.handler.door import TIMEOUT, Door, open_door, outputs_of, refused
from tests.handler.harness import INPUT_SIZE, OUTPUT_SIZE, random_inputs

MODEL = "copy"


class InferenceDoor:
    def __init__(self, door: Door) -> None:
        self.door = door
        self.stub = inference_pb2_grpc.GRPCInferenceServiceStub(door.channel)

    def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        return self.stub.ModelInfer(request, timeout=TIMEOUT)

    def stream(self, requests: Iterable[pb.ModelInferRequest]) -> list[pb.ModelStreamInferResponse]:
        return list(self.stub.ModelStreamInfer(iter(list(requests)), timeout=TIMEOUT))

    def alone(self, *chunks: Float32) -> list[Float32]:
        """What the contract's endpoint answers to these chunks of a new session."""
        self.door.create("alone")
        answers = [outputs_of(self.door.step("alone", chunk)) for chunk in chunks]
        self.door.stub.DeleteSession(dnc_pb2.DeleteSessionRequest(session_id="alone"), timeout=TIMEOUT)
        return answers


@pytest.fixture(scope="module")
def inference(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceDoor]:
    with open_door(artifact_folder, tmp_path_factory.mktemp("state"), max_chunk_timesteps=50) as door:
        yield InferenceDoor(door)


def request(sequence_id: int | str | None, inputs: Float32, **options: Any) -> pb.ModelInferRequest:
    """`options` are parameters, but for `id`, and `contents` in the place of raw ones."""
    made = pb.ModelInferRequest(model_name=MODEL, id=options.pop("id", ""))
    tensor = made.inputs.add(name="INPUT", datatype="FP32", shape=inputs.shape)
    if options.pop("contents", False):
        tensor.contents.fp32_contents.extend(inputs.ravel().tolist())
    else:
        made.raw_input_contents.append(inputs.tobytes())
    for name, value in ({"sequence_id": sequence_id} | options).items():
        if value is not None:
            field = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
            setattr(made.parameters[name], field, value)
    return made


def outputs(answer: pb.ModelInferResponse) -> Float32:
    assert [(one.name, one.datatype) for one in answer.outputs] == [("OUTPUT", "FP32")]
    return np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(tuple(answer.outputs[0].shape))


def position(answer: pb.ModelInferResponse) -> int:
    return answer.parameters["position"].int64_param


def replayed(answer: pb.ModelInferResponse) -> bool:
    return "replayed" in answer.parameters


FIRST, SECOND = random_inputs(1, 3), random_inputs(2, 2)


def test_the_server_and_its_model_say_what_they_are(inference: InferenceDoor) -> None:
    stub = inference.stub
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=TIMEOUT).live
    assert stub.ServerReady(pb.ServerReadyRequest(), timeout=TIMEOUT).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name=MODEL), timeout=TIMEOUT).ready
    assert "sequence" in stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=TIMEOUT).extensions
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=MODEL, version="1"), timeout=TIMEOUT)
    assert [(one.name, one.datatype, [*one.shape]) for one in (*metadata.inputs, *metadata.outputs)] == [
        ("INPUT", "FP32", [-1, INPUT_SIZE]),
        ("OUTPUT", "FP32", [-1, OUTPUT_SIZE]),
    ]
    config = stub.ModelConfig(pb.ModelConfigRequest(name=MODEL), timeout=TIMEOUT).config
    assert config.HasField("sequence_batching")
    assert config.max_batch_size == 0
    assert [(one.name, one.data_type, [*one.dims]) for one in config.input] == [("INPUT", pb.TYPE_FP32, [-1, 5])]


def test_statistics_count_what_was_inferred(inference: InferenceDoor) -> None:
    def statistics() -> pb.ModelStatistics:
        asked = pb.ModelStatisticsRequest(name=MODEL)
        return inference.stub.ModelStatistics(asked, timeout=TIMEOUT).model_stats[0]

    before = statistics()
    inference.infer(request("counted", FIRST, sequence_start=True, sequence_end=True))
    after = statistics()
    assert after.inference_count - before.inference_count == len(FIRST)
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns


@pytest.mark.parametrize("contents", [False, True])
def test_a_sequence_has_the_bits_of_a_session(inference: InferenceDoor, contents: bool) -> None:
    first = inference.infer(request(7, FIRST, sequence_start=True, id="one", contents=contents))
    second = inference.infer(request(7, SECOND, sequence_end=True, contents=contents))
    assert (first.id, position(first), position(second)) == ("one", 3, 5)
    for answer, expected in zip((first, second), inference.alone(FIRST, SECOND), strict=True):
        assert np.array_equal(outputs(answer), expected)


def test_an_id_names_the_session(inference: InferenceDoor) -> None:
    for sequence_id in (11, "patient-17"):
        inference.infer(request(sequence_id, FIRST, sequence_start=True))
        went_on = outputs_of(inference.door.step(str(sequence_id), SECOND))
        assert np.array_equal(went_on, inference.alone(FIRST, SECOND)[1])


def test_a_start_begins_anew(inference: InferenceDoor) -> None:
    before = inference.infer(request(12, FIRST, sequence_start=True))
    inference.infer(request(12, SECOND))
    anew = inference.infer(request(12, FIRST, sequence_start=True))
    assert outputs(anew).tobytes() == outputs(before).tobytes()
    assert position(anew) == len(FIRST)
    assert anew.parameters["incarnation"] != before.parameters["incarnation"]


def test_an_end_ends(inference: InferenceDoor) -> None:
    inference.infer(request(13, FIRST, sequence_start=True, sequence_end=True))
    with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND):
        inference.door.session("13")
    with refused("BAD_REQUEST", StatusCode.INVALID_ARGUMENT):
        inference.infer(request(13, SECOND))


def test_an_end_may_keep_the_session(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, sequence_end="keep") as door:
        InferenceDoor(door).infer(request(13, FIRST, sequence_start=True, sequence_end=True))
        assert door.session("13").position == len(FIRST)


def test_a_start_that_is_sent_again_is_answered_again(inference: InferenceDoor) -> None:
    asked = request(14, FIRST, sequence_start=True, id="start")
    answers = [inference.infer(asked) for _ in range(3)]
    assert [replayed(answer) for answer in answers] == [False, True, True]
    assert len({answer.parameters["incarnation"].string_param for answer in answers}) == 1
    inference.infer(request(14, SECOND))
    assert not replayed(inference.infer(asked))  # the sequence had gone on: this is another one


def test_an_end_that_is_sent_again_is_answered_again(inference: InferenceDoor) -> None:
    inference.infer(request(15, FIRST, sequence_start=True, id="0"))
    asked = request(15, SECOND, sequence_end=True, id="1")
    answers = [inference.infer(asked) for _ in range(2)]
    assert outputs(answers[0]).tobytes() == outputs(answers[1]).tobytes()


def test_a_request_is_known_by_its_id(inference: InferenceDoor) -> None:
    inference.infer(request(16, FIRST, sequence_start=True, id="0"))
    asked = request(16, SECOND, id="1")
    first = inference.infer(asked)
    inference.infer(request(16, SECOND, id="2"))  # the same inputs, and another request
    again = inference.infer(asked)
    assert replayed(again)
    assert (position(again), outputs(again).tobytes()) == (position(first), outputs(first).tobytes())
    assert inference.door.session("16").position == 7
    with refused("STEP_CONFLICT", StatusCode.ABORTED):
        inference.infer(request(16, FIRST, id="1"))


def test_a_request_is_known_by_its_position(inference: InferenceDoor) -> None:
    inference.infer(request(17, FIRST, sequence_start=True, position=0))
    asked = request(17, SECOND, position=3)
    first, again = inference.infer(asked), inference.infer(asked)
    assert (replayed(first), replayed(again), position(again)) == (False, True, 5)
    with refused("STEP_GAP", StatusCode.FAILED_PRECONDITION) as metadata:
        inference.infer(request(17, SECOND, position=8))
    assert metadata["expected_position"] == "5"
    with refused("SESSION_REPLACED", StatusCode.FAILED_PRECONDITION):
        inference.infer(request(17, SECOND, position=5, incarnation="12"))
    named = inference.infer(request(17, SECOND, position=5, incarnation=first.parameters["incarnation"].string_param))
    assert position(named) == 7


def test_chunks_of_many_sequences_in_flight(inference: InferenceDoor) -> None:
    names = [f"in-flight-{number}" for number in range(20)]
    inputs = random_inputs(3, 12)
    requests = [
        request(name, inputs[at : at + 3], id=f"{name} {at}", sequence_start=at == 0, sequence_end=at == 9)
        for at in range(0, 12, 3)
        for name in names
    ]
    responses = inference.stream(requests)
    expected = np.concatenate(inference.alone(inputs))
    for name in names:
        mine = [one.infer_response for one in responses if one.infer_response.id.startswith(f"{name} ")]
        assert [answer.id for answer in mine] == [f"{name} {at}" for at in range(0, 12, 3)]
        assert np.array_equal(np.concatenate([outputs(answer) for answer in mine]), expected)


def test_a_refusal_on_a_stream_is_answered_in_its_place(inference: InferenceDoor) -> None:
    bad = request(18, SECOND[:, :2], id="bad")
    requests = [request(18, FIRST, sequence_start=True, id="a"), bad, request(18, SECOND, id="b")]
    responses = inference.stream([*requests, pb.ModelInferRequest(id="no sequence")])
    ids = [one.infer_response.id for one in responses if one.infer_response.id != "no sequence"]
    assert ids == ["a", "bad", "b"]
    refusals = {one.infer_response.id: one.error_message for one in responses if one.error_message}
    assert refusals["bad"] == f"inputs have shape [2, 2], expected [timesteps, {INPUT_SIZE}]"
    assert "must specify a non-zero or non-empty correlation ID" in refusals["no sequence"]


def test_the_final_response_is_marked_where_asked_for(inference: InferenceDoor) -> None:
    asked = request(19, FIRST, sequence_start=True, triton_enable_empty_final_response=True)
    for requests, marked in (([asked], True), ([request(19, SECOND)], False)):
        (response,) = inference.stream(requests)
        assert response.infer_response.parameters["triton_final_response"].bool_param is marked


def changed(**fields: Any) -> pb.ModelInferRequest:
    made = request(20, FIRST, sequence_start=True)
    tensor = made.inputs[0]
    for name, value in fields.items():
        match name:
            case "shape":
                tensor.shape[:] = value
            case "datatype" | "name":
                setattr(tensor, name, value)
            case "raw":
                made.raw_input_contents[:] = value
            case "contents":
                tensor.contents.fp32_contents.extend(value)
            case "output":
                made.outputs.add(name=value)
            case "region":
                tensor.parameters["shared_memory_region"].string_param = value
            case _:
                setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(None, FIRST), "BAD_REQUEST"),
        (request(0, FIRST), "BAD_REQUEST"),
        (request("", FIRST), "BAD_REQUEST"),
        (request(1.5, FIRST), "BAD_REQUEST"),  # type: ignore[arg-type]
        (request("a b", FIRST), "BAD_ID"),
        (request(20, FIRST, sequence_start=1), "BAD_REQUEST"),
        (request(20, FIRST, position="x"), "BAD_REQUEST"),
        (request(20, FIRST, sequence_start=True, position=3), "BAD_REQUEST"),
        (request("never-begun", FIRST), "BAD_REQUEST"),
        (changed(name="X"), "BAD_REQUEST"),
        (changed(datatype="BF16"), "BAD_DTYPE"),
        (changed(datatype="FP64"), "BAD_SHAPE"),
        (changed(shape=[-1, 5]), "BAD_SHAPE"),
        (changed(shape=[3, 4]), "BAD_SHAPE"),
        (changed(shape=[51, 5], raw=[bytes(51 * 5 * 4)]), "CHUNK_TOO_LONG"),
        (changed(raw=[]), "BAD_SHAPE"),
        (changed(raw=[bytes(60), bytes(60)]), "BAD_REQUEST"),
        (changed(contents=[1.0]), "BAD_REQUEST"),
        (changed(raw=[], contents=[1.0]), "BAD_SHAPE"),
        (changed(raw=[np.full((3, 5), np.nan, np.float32).tobytes()]), "NOT_FINITE"),
        (changed(output="X"), "BAD_REQUEST"),
        (changed(region="r"), "BAD_REQUEST"),
    ],
)
def test_what_is_wrong_is_said(inference: InferenceDoor, asked: pb.ModelInferRequest, reason: str) -> None:
    with refused(reason, StatusCode.INVALID_ARGUMENT):
        inference.infer(asked)


def test_another_model_is_not_found(inference: InferenceDoor) -> None:
    for asked in (changed(model_name="other"), changed(model_version="2")):
        with refused("MODEL_NOT_FOUND", StatusCode.NOT_FOUND):
            inference.infer(asked)
    with refused("MODEL_NOT_FOUND", StatusCode.NOT_FOUND):
        inference.stub.ModelReady(pb.ModelReadyRequest(name="other"), timeout=TIMEOUT)


def test_the_datatypes_of_the_contract_are_taken(inference: InferenceDoor) -> None:
    expected = inference.alone(FIRST)[0]
    for datatype, dtype in (("FP64", "<f8"), ("FP16", "<f2"), ("INT8", "<i1"), ("INT64", "<i8")):
        asked = changed(datatype=datatype, raw=[FIRST.astype(dtype).tobytes()])
        assert np.array_equal(outputs(inference.infer(asked)), expected)


def test_a_draining_server_sends_streams_away(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(door.channel)
        over = threading.Event()

        def requests() -> Iterator[pb.ModelInferRequest]:
            yield request(1, FIRST, sequence_start=True)
            over.wait()

        responses = stub.ModelStreamInfer(requests(), timeout=TIMEOUT)
        assert position(next(responses).infer_response) == 3
        door.server.drain(10.0)
        with refused("DRAINING", StatusCode.UNAVAILABLE):
            next(responses)
        over.set()


def test_tokens_and_their_limits_hold(artifact_folder: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    entries = {"ward": "max_sessions = 1", "guest": "read_only = true", "other": ""}
    tokens.write_text(
        "\n".join(
            f'[[token]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n{limit}'
            for name, limit in entries.items()
        )
    )
    with open_door(artifact_folder, tmp_path / "state", tokens=str(tokens)) as door:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(door.channel)

        def infer(asked: pb.ModelInferRequest, token: str) -> pb.ModelInferResponse:
            return stub.ModelInfer(asked, metadata=(("authorization", f"Bearer {token}"),), timeout=TIMEOUT)

        for call, message in ((stub.ServerReady, pb.ServerReadyRequest()), (stub.ModelInfer, request(1, FIRST))):
            with refused("UNAUTHENTICATED", StatusCode.UNAUTHENTICATED):
                call(message, timeout=TIMEOUT)
        with refused("PERMISSION_DENIED", StatusCode.PERMISSION_DENIED):
            infer(request(1, FIRST, sequence_start=True), "guest")
        infer(request(1, FIRST, sequence_start=True), "ward")
        infer(request(1, FIRST, sequence_start=True), "ward")  # begun anew, it is still one
        with refused("SESSION_LIMIT", StatusCode.RESOURCE_EXHAUSTED):
            infer(request(2, FIRST, sequence_start=True), "ward")
        # To others it is unknown, and not theirs to begin anew.
        with refused("BAD_REQUEST", StatusCode.INVALID_ARGUMENT):
            infer(request(1, FIRST), "other")
        with refused("SESSION_EXISTS", StatusCode.ALREADY_EXISTS):
            infer(request(1, FIRST, sequence_start=True), "other")
        assert position(infer(request(1, SECOND), "ward")) == 5
