"""TorchServe's own door: JSON over HTTP, protobuf over gRPC, the same sessions as at the streaming door."""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc_serve.client import Client
from dnc_serve.handler.api.arrays import encode_array
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.end_to_end.servers import Server
from tests.end_to_end.torchserve_client import TorchServeClient
from tests.handler.harness import INPUT_SIZE
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.parametrize("runtime", ["torchserve"], indirect=True)


@pytest.fixture(scope="module")
def predictions(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServeClient]:
    client = TorchServeClient(server.addresses["torchserve"], tmp_path_factory.mktemp("proto"))
    yield client
    client.channel.close()


def inputs(seed: int, timesteps: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), (timesteps, INPUT_SIZE))


def post(server: Server, body: Any, content_type: str = "application/json", **headers: str) -> tuple[int, Any]:
    """HTTP status and answer; bytes are sent as they are, all else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{server.addresses['http']}/predictions/dnc", data, {"content-type": content_type, **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as exc:
        return exc.code, json.loads(exc.read())


def reason(answer: Any) -> str:
    return str(answer["status"]["details"][0]["reason"])


def test_a_life_in_json(server: Server) -> None:
    status, answer = post(server, {"create_session": {"session_id": "json"}})
    assert (status, answer["create_session"]["created"]) == (200, True)
    assert answer["create_session"]["session"]["position"] == 0
    incarnation = answer["create_session"]["session"]["incarnation"]

    status, answer = post(server, {"step": {"session_id": "json", "inputs": inputs(1, 3).tolist(), "position": 0}})
    first = answer["step"]["result"]
    assert (status, first["position"], first["incarnation"]) == (200, 3, incarnation)
    assert np.shape(first["outputs"]) == (3, 4)

    again = {"session_id": "json", "incarnation": incarnation, "position": 0, "inputs": inputs(1, 3).tolist()}
    status, answer = post(server, {"step": {"chunk": again}})
    assert (status, answer["step"]["result"]["replayed"]) == (200, True)
    assert answer["step"]["result"]["outputs"] == first["outputs"]

    status, answer = post(server, {"dump_memory": {"session_id": "json", "names": ["memory", "usage_vector"]}})
    assert status == 200
    assert {name: np.shape(array) for name, array in answer["dump_memory"]["arrays"].items()} == {
        "memory": (1, 12, 6),
        "usage_vector": (1, 12),
    }
    status, answer = post(server, {"reset_session": {"session_id": "json", "scope": "RESET_SCOPE_ALL"}})
    assert (status, answer["reset_session"]["result"]["session"]["experience"]) == (200, 1)
    status, answer = post(server, {"fork_session": {"session_id": "json", "fork_session_id": "json-fork"}})
    assert (status, answer["fork_session"]["session"]["position"]) == (200, 3)
    status, answer = post(server, {"export_session": {"session_id": "json"}})
    blob = answer["export_session"]["data"]
    status, answer = post(server, {"import_session": {"session_id": "json-import", "data": blob}})
    assert (status, answer["import_session"]["session"]["session_id"]) == (200, "json-import")
    status, answer = post(server, {"list_sessions": {"prefix": "json"}})
    assert [one["session_id"] for one in answer["list_sessions"]["sessions"]] == ["json", "json-fork", "json-import"]
    status, answer = post(server, {"delete_session": {"session_id": "json"}})
    assert (status, answer) == (200, {"delete_session": {"deleted": True}})
    status, answer = post(server, {"get_session": {"session_id": "json"}})
    assert (status, reason(answer)) == (404, "SESSION_NOT_FOUND")
    status, answer = post(server, {"get_model": {}})
    assert (status, answer["get_model"]["inputs"]["shape"]) == (200, [INPUT_SIZE])


def test_curl(server: Server) -> None:
    call = json.dumps({"create_session": {"session_id": "curl", "allow_existing": True}})
    command = ["curl", "--silent", "--fail", "-H", "content-type: application/json", "-d", call]
    printed = subprocess.run(
        [*command, f"http://{server.addresses['http']}/predictions/dnc"], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(printed)["create_session"]["created"] is True


def test_a_stored_reply_is_given_to_its_writer_at_every_door(server: Server, predictions: TorchServeClient) -> None:
    chunk = inputs(5, 3)
    sent = {"session_id": "shared", "position": 0, "inputs": chunk.tolist()}
    with Client(server.grpc) as client:
        mine = client.session("shared")
        outputs = mine.step(chunk)
        status, answer = post(server, {"step": {**sent, "writer_id": str(mine.writer_id)}})
        assert (status, answer["step"]["result"]["replayed"]) == (200, True)
        assert np.array_equal(np.array(answer["step"]["result"]["outputs"], np.float32), outputs)
        for other in ({}, {"writer_id": "7"}):
            status, answer = post(server, {"step": {**sent, **other}})
            assert (status, reason(answer)) == (409, "STEP_CONFLICT")
            assert "another writer's chunk was applied" in answer["status"]["message"]
        message = pb.Chunk(session_id="shared", position=0, inputs=encode_array(chunk), writer_id=7)
        refused = predictions.call(pb.Call(step=pb.StepRequest(chunk=message)))
        assert "another writer's chunk was applied" in refused.status.message
        message.writer_id = mine.writer_id
        assert predictions.call(pb.Call(step=pb.StepRequest(chunk=message))).step.result.replayed
        assert mine.info().position == 3


def test_one_session_at_three_doors_gives_the_bits_of_one(server: Server, predictions: TorchServeClient) -> None:
    chunks = [inputs(seed, 4) for seed in range(6)]
    with Client(server.grpc) as client:
        with client.session("alone") as session:
            expected = [session.step(chunk) for chunk in chunks]
        outputs = []
        for index, chunk in enumerate(chunks):
            match index % 3:
                case 0:
                    with client.session("around") as session:
                        outputs.append(session.step(chunk))
                case 1:
                    step = pb.StepRequest(chunk=pb.Chunk(session_id="around", inputs=encode_array(chunk)))
                    result = predictions.call(pb.Call(step=step)).step.result
                    assert result.position == 4 * (index + 1)
                    outputs.append(np.frombuffer(result.outputs.data, "<f4").reshape(tuple(result.outputs.shape)))
                case 2:
                    _, answer = post(server, {"step": {"session_id": "around", "inputs": chunk.tolist()}})
                    outputs.append(np.array(answer["step"]["result"]["outputs"], np.float32))
    np.testing.assert_array_equal(outputs, expected)


BAD_BODIES = {
    "not JSON": (b"{bad", "BAD_REQUEST"),
    "not UTF-8": (b'{"get_model": "\xff"}', "BAD_REQUEST"),
    "a list": ([1, 2], "BAD_REQUEST"),
    "no call": ({}, "BAD_REQUEST"),
    "unknown call": ({"nope": {}}, "BAD_REQUEST"),
    "unknown field": ({"step": {"session_id": "bad", "input": [[0]]}}, "BAD_REQUEST"),
    "two calls": ({"get_model": {}, "list_sessions": {}}, "BAD_REQUEST"),
    "deep": (b'{"step":' * 100_000, "BAD_REQUEST"),
    "wrong type": ({"step": {"session_id": 7}}, "BAD_REQUEST"),
    "huge number": (b'{"step": {"session_id": "bad", "inputs": [[1e999, 0, 0, 0, 0]]}}', "NOT_FINITE"),
    "NaN": (b'{"step": {"session_id": "bad", "inputs": [[NaN, 0, 0, 0, 0]]}}', "NOT_FINITE"),
    "beyond float32": ({"step": {"session_id": "bad", "inputs": [[1e300, 0, 0, 0, 0]]}}, "NOT_FINITE"),
    "huge integer": ({"step": {"session_id": "bad", "inputs": [[10**400, 0, 0, 0, 0]]}}, "BAD_DTYPE"),
    "ragged": ({"step": {"session_id": "bad", "inputs": [[1, 2], [3]]}}, "BAD_SHAPE"),
    "narrow": ({"step": {"session_id": "bad", "inputs": [[1, 2]]}}, "BAD_SHAPE"),
    "flat": ({"step": {"session_id": "bad", "inputs": [1, 2]}}, "BAD_SHAPE"),
    "no timestep": ({"step": {"session_id": "bad", "inputs": []}}, "BAD_SHAPE"),
    "text": ({"step": {"session_id": "bad", "inputs": [["a", "b", "c", "d", "e"]]}}, "BAD_DTYPE"),
    "long id": ({"create_session": {"session_id": "x" * 10_000}}, "BAD_ID"),
    "odd id": ({"create_session": {"session_id": "a\nb"}}, "BAD_ID"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_json_is_refused_and_nothing_is_lost(server: Server, name: str) -> None:
    body, expected = BAD_BODIES[name]
    post(server, {"create_session": {"session_id": "bad", "allow_existing": True}})
    status, answer = post(server, body)
    assert (status, reason(answer)) == (400, expected)
    assert post(server, {"get_session": {"session_id": "bad"}})[1]["get_session"]["session"]["position"] == 0


def test_a_form_is_refused_with_the_way_to_do_it(server: Server) -> None:
    status, answer = post(server, b"a=1", "application/x-www-form-urlencoded")
    assert (status, reason(answer)) == (400, "BAD_REQUEST")
    assert "application/json" in answer["status"]["message"]


def test_bad_protobuf(predictions: TorchServeClient) -> None:
    for payload in (b"", b"\xff\xff\xff", b"\x0a\x05abc"):
        result = pb.CallResult.FromString(predictions.send(payload))
        assert result.status.code == 3, payload
    assert json.loads(predictions.send(b'{"get_model": {}}'))["get_model"]["inputs"]["shape"] == [INPUT_SIZE]


def test_good_and_bad_rows_of_a_batch_each_get_their_own(server: Server, predictions: TorchServeClient) -> None:
    """Sent together, so that TorchServe hands them over in batches."""
    for index in range(16):
        predictions.call(pb.Call(create_session=pb.CreateSessionRequest(session_id=f"row-{index}")))
    chunk = encode_array(inputs(3, 2))
    good = [
        pb.Call(step=pb.StepRequest(chunk=pb.Chunk(session_id=f"row-{i}", position=0, inputs=chunk))) for i in range(16)
    ]
    unknown = pb.Call(step=pb.StepRequest(chunk=pb.Chunk(session_id="nobody", inputs=chunk)))
    futures = []
    for call in good:
        futures += [predictions.begin(payload) for payload in (call.SerializeToString(), b"\xff", b"{")]
        futures.append(predictions.begin(unknown.SerializeToString()))
    answers = [future.result().prediction for future in futures]
    results = [pb.CallResult.FromString(answer) for answer in answers[0::4]]
    assert {result.step.result.position for result in results} == {2}
    assert len({result.step.result.outputs.data for result in results}) == 1
    assert {pb.CallResult.FromString(answer).status.code for answer in answers[1::4]} == {3}
    assert {json.loads(answer)["status"]["code"] for answer in answers[2::4]} == {3}
    assert {pb.CallResult.FromString(answer).status.code for answer in answers[3::4]} == {5}


def test_many_callers_over_http(server: Server) -> None:
    def live(index: int) -> list[int]:
        session = {"session_id": f"many-{index}"}
        post(server, {"create_session": session})
        return [
            post(server, {"step": {**session, "inputs": inputs(index, 1).tolist(), "position": position}})[1]["step"][
                "result"
            ]["position"]
            for position in range(5)
        ]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(live, range(16))) == [[1, 2, 3, 4, 5]] * 16


def test_a_lone_caller_does_not_wait_long_for_a_batch(server: Server) -> None:
    """Unset, it would be 100 ms a call."""
    with urllib.request.urlopen(f"http://{server.addresses['management']}/models/dnc", timeout=PATIENCE_S) as described:
        (model,) = json.load(described)
    assert model["maxBatchDelay"] == 1


def test_the_management_api_loads_nothing_from_elsewhere(server: Server, tmp_path: Path) -> None:
    (tmp_path / "other.mar").write_bytes(b"")
    for url in (f"file://{tmp_path}/other.mar", "https://example.com/other.mar"):
        request = urllib.request.Request(
            f"http://{server.addresses['management']}/models?url={url}", data=b"", method="POST"
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE_S)
        assert refused.value.code in (400, 403, 404, 405)
