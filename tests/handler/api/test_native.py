"""Rows of TorchServe's own door, in and out, around a real server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from ts.context import Context, RequestProcessor

from dnc_serve.handler.api import torchserve_calls as native
from dnc_serve.handler.api.arrays import encode_array
from dnc_serve.handler.api.call_json import call_from_json, to_json
from dnc_serve.handler.api.status import HTTP_STATUS, status_of
from dnc_serve.handler.api.torchserve_calls import answer
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.reasons import REASONS
from tests.handler.door import TIMEOUT, Door, open_door
from tests.handler.harness import INPUT_SIZE, random_inputs

JSON = "application/json"


@pytest.fixture(scope="module")
def door(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(artifact_folder, tmp_path_factory.mktemp("state")) as door:
        door.create("native")
        yield door


def context(*headers: dict[str, str]) -> Context:
    """TorchServe's own, with the headers of each row."""
    made = Context("dnc", "", {}, len(headers), None, "0.12.0")
    made.request_processor = [RequestProcessor(dict(of_row)) for of_row in headers]
    return made


def ask(door: Door, rows: list[dict[str, Any]], *headers: dict[str, str]) -> tuple[list[bytes], Context]:
    asked = context(*(headers or [{}] * len(rows)))
    return answer(lambda calls: door.server.call(calls, 20.0), rows, asked), asked


def step_call(**fields: Any) -> pb.Call:
    return pb.Call(step=pb.StepRequest(chunk=pb.Chunk(session_id="native", **fields)))


def test_each_row_is_answered_in_the_language_and_with_the_status_that_is_its_own(door: Door) -> None:
    inputs = encode_array(random_inputs(1, 2))
    rows = [
        {"body": b'{"get_model": {}}'},
        {"data": bytearray(step_call(inputs=inputs).SerializeToString())},
        {"body": b"{bad"},
        {"data": b"\xff\xff"},
        {"body": {"get_session": {"session_id": "nobody"}}},  # decoded already by a TorchServe that does
        {"anything": '{"get_model": {}}'},
    ]
    headers = [{"Content-Type": JSON}, {}, {"Content-Type": JSON}, {}, {"Content-Type": JSON}, {}]
    answers, asked = ask(door, rows, *headers)
    assert [asked.get_response_status(i)[0] for i in range(6)] == [200, 200, 400, 400, 404, 200]
    assert json.loads(answers[0])["get_model"]["inputs"]["shape"] == [INPUT_SIZE]
    assert pb.CallResult.FromString(answers[1]).step.result.position >= 2
    assert json.loads(answers[2])["status"]["details"][0]["reason"] == "BAD_REQUEST"
    assert pb.CallResult.FromString(answers[3]).status.code == 3
    assert json.loads(answers[4])["status"]["details"][0]["metadata"] == {"session_id": "nobody"}
    assert json.loads(answers[5])["get_model"]["inputs"]["shape"] == [INPUT_SIZE]
    assert [asked.get_response_content_type(i) for i in (0, 1)] == [JSON, "application/x-protobuf"]


def test_a_state_that_its_caller_keeps_travels_in_json(artifact_folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("5a" * 32)
    inputs = [[1.0] * INPUT_SIZE] * 2
    with open_door(artifact_folder, tmp_path, state_keys=str(keys)) as keyed:
        state = ""
        for position in (2, 4):
            call = {"step_with_state": {"chunk": {"inputs": inputs}, "state": state}}
            (answered,), _ = ask(keyed, [{"body": json.dumps(call).encode()}], {"Content-Type": JSON})
            stepped = json.loads(answered)["step_with_state"]
            assert (stepped["result"]["position"], len(stepped["result"]["outputs"])) == (position, 2)
            state = stepped["state"]


def test_protobuf_over_http(door: Door) -> None:
    call = pb.Call(get_model=pb.GetModelRequest()).SerializeToString()
    answers, _ = ask(door, [{"body": call}], {"Content-Type": "application/x-protobuf"})
    assert pb.CallResult.FromString(answers[0]).get_model.inputs.shape == [INPUT_SIZE]


@pytest.mark.parametrize("row", [{}, {"a": b"{}", "b": b"{}"}])
def test_a_row_holds_one_part(door: Door, row: dict[str, bytes]) -> None:
    answers, _ = ask(door, [row], {"Content-Type": JSON})
    assert json.loads(answers[0])["status"]["code"] == 3


def test_the_bearer_token_of_the_headers_becomes_that_of_the_call() -> None:
    seen: list[pb.Call] = []

    def call_server(calls: list[Any]) -> list[pb.CallResult]:
        seen.extend(calls)
        return [pb.CallResult() for _ in calls]

    rows = [{"body": b'{"get_model": {}}'}, {"body": b'{"get_model": {}, "token": "own"}'}]
    answer(call_server, rows, context({"Authorization": "Bearer abc"}, {"authorization": "bearer abc"}))
    assert [call.token for call in seen] == ["abc", "own"]


def test_a_server_that_fails_still_answers_every_row() -> None:
    def call_server(calls: list[Any]) -> list[pb.CallResult]:
        raise RuntimeError("out of order")

    asked = context({"content-type": JSON}, {})
    answers = answer(call_server, [{"body": b'{"get_model": {}}'}, {"data": b""}], asked)
    assert json.loads(answers[0])["status"]["details"][0]["reason"] == "INTERNAL"
    assert pb.CallResult.FromString(answers[1]).status.code == 13
    assert asked.get_response_status(0)[0] == 500


def test_an_answer_too_large_for_torchserve_is_refused(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "TORCHSERVE_MAX_BYTES", 500)
    answers, asked = ask(door, [{"body": b'{"dump_memory": {"session_id": "native"}}'}], {"content-type": JSON})
    assert json.loads(answers[0])["status"]["details"][0]["reason"] == "STATE_TOO_LARGE"
    assert asked.get_response_status(0)[0] == 429


def test_a_dump_can_be_thinned(door: Door) -> None:
    door.stub.CreateSession(pb.CreateSessionRequest(session_id="native", allow_existing=True), timeout=TIMEOUT)
    body = b'{"dump_memory": {"session_id": "native", "names": ["link_matrix"], "max_cells": 9}}'
    answers, _ = ask(door, [{"body": body}], {"content-type": JSON})
    dump = json.loads(answers[0])["dump_memory"]
    thinned = dump["thinned"]["link_matrix"]
    assert thinned["full_shape"] == [1, 1, 12, 12]
    assert [len(thinned["array"][0][0]), len(thinned["array"][0][0][0])] == [3, 3]
    assert "arrays" not in dump


def test_every_reason_has_an_http_status() -> None:
    for reason in REASONS:
        code = status_of(ServeError(reason, "")).code
        assert HTTP_STATUS.get(code, 500) >= 400, reason


def test_the_short_form_is_the_whole_one() -> None:
    pairs = [
        ({"step": {"session_id": "s", "position": 3}}, {"step": {"chunk": {"session_id": "s", "position": 3}}}),
        ({"reset_session": {"session_id": "s"}}, {"reset_session": {"reset": {"session_id": "s"}}}),
        ({"dump_memory": {"names": ["memory"]}}, {"dump_memory": {"dump": {"names": ["memory"]}}}),
    ]
    for short, whole in pairs:
        assert call_from_json(short) == call_from_json(whole) == json_format.ParseDict(whole, pb.Call())


@pytest.mark.parametrize(
    ("rows", "dtype"), [([[0.5, 1]], pb.DATA_TYPE_FLOAT64), ([[1, -2]], pb.DATA_TYPE_INT64), ([], pb.DATA_TYPE_FLOAT64)]
)
def test_nested_lists_become_arrays(rows: list[Any], dtype: int) -> None:
    array = call_from_json({"step": {"session_id": "s", "inputs": rows}}).step.chunk.inputs
    assert (array.dtype, tuple(array.shape)) == (dtype, np.shape(rows))


def test_arrays_as_messages_are_taken_too() -> None:
    call = step_call(inputs=encode_array(random_inputs(2, 3)))
    assert call_from_json(json_format.MessageToDict(call)) == call


def test_json_results_name_what_is_zero_and_leave_out_what_is_absent() -> None:
    result = pb.CallResult(step=pb.StepResponse(result=pb.ChunkResult(incarnation=2**64 - 1)))
    written = json.loads(to_json(result))
    assert set(written) == {"step"}
    assert written["step"]["result"]["position"] == 0
    assert written["step"]["result"]["incarnation"] == str(2**64 - 1)
    assert "outputs" not in written["step"]["result"]
    assert json.loads(to_json(pb.CallResult(list_sessions=pb.ListSessionsResponse()))) == {
        "list_sessions": {"sessions": [], "next_page_token": ""}
    }
