"""Triton's protocol over HTTP."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from dnc_serve.handler.arrays import Float32
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.api.test_inference import InferenceDoor
from tests.handler.door import Door, open_door
from tests.handler.harness import INPUT_SIZE, random_inputs

INPUTS = random_inputs(1, 3)
INFER = "/v2/models/copy/infer"
LENGTH = "Inference-Header-Content-Length"


class HttpDoor:
    def __init__(self, door: Door) -> None:
        self.door = door
        self._connection = HTTPConnection(door.addresses.http)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """The status, the body, read if it is JSON, and headers by their names in small letters."""
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        self._connection.request(method, path, sent, {name.replace("_", "-"): value for name, value in headers.items()})
        response = self._connection.getresponse()
        came, got = response.read(), {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(came) if got.get("content-type") == "application/json" else came, got


@pytest.fixture(scope="module")
def http(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpDoor]:
    with open_door(artifact_folder, tmp_path_factory.mktemp("state"), http_port=0, max_message_bytes=100_000) as door:
        yield HttpDoor(door)


def request(sequence_id: int | str, inputs: Float32, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "INPUT", "datatype": "FP32", "shape": [*inputs.shape], "data": inputs.tolist()}
    return {"parameters": {"sequence_id": sequence_id, **parameters}, "inputs": [tensor]}


def test_the_server_and_its_model_say_what_they_are(http: HttpDoor) -> None:
    assert http.ask("GET", "/v2/health/live")[0] == http.ask("GET", "/v2/health/ready")[0] == 200
    assert "binary_tensor_data" in http.ask("GET", "/v2")[1]["extensions"]
    for path in ("/v2/models/copy", "/v2/models/copy/versions/1"):
        assert http.ask("GET", f"{path}/ready")[0] == 200
        status, model, _ = http.ask("GET", path)
        assert (status, model["name"], model["versions"]) == (200, "copy", ["1"])
        assert model["inputs"] == [{"name": "INPUT", "datatype": "FP32", "shape": [-1, INPUT_SIZE]}]
        config = http.ask("GET", f"{path}/config")[1]
        assert config["input"][0] == {"name": "INPUT", "data_type": "TYPE_FP32", "dims": [-1, INPUT_SIZE]}
        assert "sequence_batching" in config
        assert http.ask("GET", f"{path}/stats")[1]["model_stats"][0]["inference_stats"]["success"]["count"] >= 0


def test_json_and_bytes_have_the_bits_of_a_session(http: HttpDoor) -> None:
    (expected,) = InferenceDoor(http.door).alone(INPUTS)
    status, answer, _ = http.ask("POST", INFER, request("json", INPUTS, sequence_start=True, sequence_end=True))
    assert (status, answer["parameters"]["position"], answer["outputs"][0]["shape"]) == (200, 3, [3, 4])
    assert np.array_equal(np.array(answer["outputs"][0]["data"], np.float32).reshape(3, 4), expected)

    asked = request("bytes", INPUTS, sequence_start=True, sequence_end=True, binary_data_output=True)
    del asked["inputs"][0]["data"]
    asked["inputs"][0]["parameters"] = {"binary_data_size": INPUTS.nbytes}
    head = json.dumps(asked).encode()
    status, body, headers = http.ask("POST", INFER, head + INPUTS.tobytes(), **{LENGTH: str(len(head))})
    length = int(headers[LENGTH.lower()])
    (output,) = json.loads(body[:length])["outputs"]
    assert (status, output["parameters"]["binary_data_size"]) == (200, expected.nbytes)
    assert body[length:] == expected.tobytes()


def test_a_call_that_is_sent_again_is_applied_once(http: HttpDoor) -> None:
    asked = request("again", INPUTS, sequence_start=True) | {"id": "first"}
    first, again = (http.ask("POST", INFER, asked)[1] for _ in range(2))
    assert again["parameters"].pop("replayed")
    assert first == again


def changed(**fields: Any) -> dict[str, Any]:
    asked = request("wrong", INPUTS, sequence_start=True)
    asked["inputs"][0] |= fields
    return asked


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"[" * 90_000, "not JSON"),
        ([], "expected a text in an object"),
        ({"inputs": 3}, "expected a list of objects"),
        (changed(data=[[1, 2], [3]]), "expected a list of numbers"),
        (changed(data=["a"]), "expected a list of numbers"),
        (changed(data=[1.5] * 15, datatype="INT8"), "expected a list of numbers"),
        (changed(data=None), "expected a list of numbers"),
        (changed(data=[1.0]), "take 60 bytes, got 4"),
        (changed(shape=[-1]), "expected a list of sizes"),
        (changed(datatype="BYTES"), "expected one of FP32"),
        (changed(parameters={"binary_data_size": 4}), "expected up to 0"),
        (request("wrong", INPUTS, sequence_start=[]), "expected a number, a text, true or false"),
        (request("never-begun", INPUTS), "must specify the START flag"),
        (b" " * 100_001, "max_message_bytes"),
    ],
)
def test_what_is_wrong_is_said(http: HttpDoor, body: Any, said: str) -> None:
    status, answer, _ = http.ask("POST", INFER, body)
    assert status == 400
    assert said in answer["error"]
    assert len(answer["error"]) < 100_000


def test_what_is_not_there(http: HttpDoor) -> None:
    assert http.ask("GET", "/v2/models/other")[0] == 404
    assert http.ask("POST", "/v2/models/copy/versions/2/infer", request(1, INPUTS))[0] == 404
    assert http.ask("GET", "/nothing")[0] == 404
    assert http.ask("GET", INFER)[0] == 405


def test_a_page_of_the_web_does_not_come_in(http: HttpDoor) -> None:
    for headers in ({"Origin": "https://example.org"}, {"Sec_Fetch_Site": "cross-site"}):
        status, answer, _ = http.ask("POST", INFER, request(1, INPUTS, sequence_start=True), **headers)
        assert (status, answer["reason"]) == (403, "PERMISSION_DENIED")


def test_tokens_are_asked_for(artifact_folder: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    # The SHA-256 of "secret".
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    tokens.write_text(f'[[token]]\nname = "ward"\nsha256 = "{digest}"\n')
    with open_door(artifact_folder, tmp_path / "state", http_port=0, tokens=str(tokens)) as door:
        http, asked = HttpDoor(door), request("mine", INPUTS, sequence_start=True)
        assert http.ask("POST", INFER, asked)[0] == 401
        assert http.ask("POST", INFER, asked, Authorization="Bearer wrong")[0] == 401
        assert http.ask("POST", INFER, asked, Authorization="Bearer secret")[0] == 200


def test_it_is_described_in_openapi(http: HttpDoor) -> None:
    status, document, _ = http.ask("GET", "/openapi.json")
    assert (status, document["openapi"]) == (200, "3.1.0")
    schemas = document["components"]["schemas"]
    asked = request("described", INPUTS, sequence_start=True)
    for name, value in (("InferRequest", asked), ("InferResponse", http.ask("POST", INFER, asked)[1])):
        Draft202012Validator.check_schema(schemas[name])
        Draft202012Validator(schemas[name]).validate(value)
    for path, calls in document["paths"].items():
        for method in set(calls) - {"parameters"}:
            status, answer, _ = http.ask(method.upper(), path.replace("{model}", "copy").replace("{id}", "nobody"))
            assert status != 405, path
            assert "nothing that this endpoint answers" not in str(answer), path


def events(http: HttpDoor, method: str, path: str, body: Any = None, most: int = 100) -> list[tuple[str, Any]]:
    """Server-sent events, names and data, until they end or there are enough of them."""
    connection = HTTPConnection(http.door.addresses.http)
    connection.request(method, path, None if body is None else json.dumps(body).encode())
    response = connection.getresponse()
    assert (response.status, response.getheader("content-type")) == (200, "text/event-stream; charset=utf-8")
    came = []
    while len(came) < most and (line := response.readline()):
        name, data, end = line, response.readline(), response.readline()
        assert (name[:7], data[:6], end) == (b"event: ", b"data: ", b"\n")
        came.append((name[7:].decode().strip(), json.loads(data[6:])))
    connection.close()
    return came


def test_our_own_calls_are_answered_in_json(http: HttpDoor) -> None:
    status, answer, _ = http.ask("POST", "/v1/call", {"create_session": {"session_id": "own"}})
    assert (status, answer["create_session"]["session"]["session_id"]) == (200, "own")
    step = {"step": {"chunk": {"session_id": "own", "inputs": INPUTS.tolist()}}}
    status, answer, _ = http.ask("POST", "/v1/call", step)
    assert (status, answer["step"]["result"]["position"]) == (200, 3)
    status, answer, _ = http.ask("POST", "/v1/call", {"get_session": {"session_id": "nobody"}})
    assert (status, answer["reason"]) == (404, "SESSION_NOT_FOUND")
    assert http.ask("POST", "/v1/call", b"{")[1]["reason"] == "BAD_REQUEST"


def test_steps_are_events_and_may_be_asked_for_again(http: HttpDoor) -> None:
    http.door.create("events")
    http.door.create("at-once")
    inputs = random_inputs(3, 5)
    body = {"inputs": inputs.tolist(), "position": 0}
    came = events(http, "POST", "/v1/sessions/events/steps?chunk=2", body)
    assert [(name, data.get("position")) for name, data in came] == [
        ("chunk", 2), ("chunk", 4), ("chunk", 5), ("end", None),
    ]  # fmt: skip
    outputs = np.concatenate([np.array(data["outputs"], np.float32) for _, data in came[:-1]])
    expected = http.door.step("at-once", inputs).outputs
    assert outputs.tobytes() == expected.data
    again = events(http, "POST", "/v1/sessions/events/steps?chunk=2", body)
    assert [(data["outputs"], data["replayed"]) for _, data in again[:-1]] == [
        (data["outputs"], True) for _, data in came[:-1]
    ]
    assert http.door.session("events").position == 5


def test_memory_is_events(http: HttpDoor) -> None:
    http.door.create("watched")
    http.door.step("watched", INPUTS)
    [(name, frame)] = events(http, "GET", "/v1/sessions/watched/memory?names=usage_vector", most=1)
    assert (name, frame["position"], list(frame["arrays"])) == ("frame", 3, ["usage_vector"])
    shown = np.array(frame["arrays"]["usage_vector"]["array"], np.float32)
    assert shown.tobytes() == http.door.dump("watched")["usage_vector"].tobytes()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/sessions/nobody/steps", {"inputs": INPUTS.tolist()}, 404),
        ("POST", "/v1/sessions/own/steps?chunk=0", {"inputs": INPUTS.tolist()}, 400),
        ("POST", "/v1/sessions/own/steps", {"inputs": [[1, 2]]}, 400),
        ("POST", "/v1/sessions/own/steps", [], 400),
        ("GET", "/v1/sessions/nobody/memory", None, 404),
        ("GET", "/v1/sessions/own/memory?names=gates", None, 400),
        ("GET", "/v1/sessions/own/memory?max_cells=x", None, 400),
    ],
)
def test_what_is_refused_at_once_has_a_status(http: HttpDoor, method: str, path: str, body: Any, status: int) -> None:
    http.door.stub.CreateSession(pb.CreateSessionRequest(session_id="own", allow_existing=True))
    got, answer, _ = http.ask(method, path, body)
    assert (got, bool(answer["reason"])) == (status, True)
