"""Several models in one server: each asked for by its name, and every session by its id alone."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from grpc import RpcError, StatusCode

from dnc_serve.client import Client, ModelMismatch, ModelNotFound, SessionExists
from dnc_serve.client.arrays import Float32
from dnc_serve.handler.api.access import Access
from dnc_serve.handler.api.call_json import call_from_json
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.inference import inference_pb2, inference_pb2_grpc
from tests.handler.door import TIMEOUT, Door, chunk, open_door, outputs_of, refused
from tests.handler.harness import LSTM_INPUTS, LSTM_UNITS, OUTPUT_SIZE, export_lstm, random_inputs
from tests.handler.scrape import scrape
from tests.handler.store.conftest import running_redis


@pytest.fixture(scope="session")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_lstm(tmp_path_factory.mktemp("lstm"))


@pytest.fixture(scope="module")
def door(artifact_folder: Path, lstm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("a5" * 32)
    with open_door(artifact_folder, tmp_path_factory.mktemp("state"), {"risk": lstm}, state_keys=str(keys)) as door:
        yield door


@pytest.fixture
def client(door: Door) -> Iterator[Client]:
    with Client(door.addresses.grpc) as client:
        yield client


def inputs(seed: int, timesteps: int = 3) -> Float32:
    """Of the LSTM."""
    return np.random.default_rng(seed).standard_normal((timesteps, LSTM_INPUTS)).astype(np.float32)


def test_models_are_listed_and_described(door: Door, client: Client) -> None:
    default, risk = client.models()
    assert (default.name, risk.name) == ("copy", "risk")
    assert client.model() is client.model("copy")
    assert (client.model().digest, client.model("risk").digest) == (default.digest, risk.digest)
    assert client.model("risk").input_size == LSTM_INPUTS
    with pytest.raises(ModelNotFound, match="there is no model 'riks', expected one of copy, risk") as caught:
        client.model("riks")
    assert caught.value.metadata == {"expected": "copy, risk", "got": "riks"}


def test_a_session_keeps_its_model(client: Client) -> None:
    with client.session("default") as session, client.session("of-risk", model="risk") as risky:
        assert (session.model, risky.model) == ("copy", "risk")
        assert session.step(random_inputs(0, 2)).shape == (2, OUTPUT_SIZE)
        first = risky.step(inputs(0))
        assert first.shape == (3, LSTM_UNITS)
        assert set(risky.dump()) == {field.name for field in client.model("risk").state}
        fork = risky.fork("fork-of-risk")
        assert fork.model == fork.info().model == "risk"
        assert fork.step(inputs(1)).tobytes() == risky.step(inputs(1)).tobytes()
        risky.reset("all")
        assert risky.step(inputs(0)).tobytes() == first.tobytes()
        assert [timestep.outputs.shape for timestep in risky.replay(6, 9)] == [(LSTM_UNITS,)] * 3
        assert next(risky.watch()).position == 9
    # Whoever knows the id alone finds it.
    with client.session("of-risk") as again:
        assert (again.model, again.position, again.created) == ("risk", 9, False)
    with client.session("of-risk", create=False, model="risk") as again:
        assert again.info().model_digest == client.model("risk").digest
    with pytest.raises(ModelMismatch, match="session 'of-risk' is of the model 'risk', expected 'copy'"):
        client.session("of-risk", create=False, model="copy")
    with pytest.raises(SessionExists):
        client.session("of-risk", model="copy")
    with pytest.raises(ModelNotFound):
        client.session("new", model="riks")


def test_an_id_is_one_sessions_of_all_models(door: Door, client: Client) -> None:
    door.create("once", model="risk")
    for model in ("", "copy", "risk"):
        with refused("SESSION_EXISTS", StatusCode.ALREADY_EXISTS):
            door.create("once", model=model)
    with client.session("source") as source:
        source.step(random_inputs(0, 1))
        with pytest.raises(SessionExists):
            source.fork("once")
        with pytest.raises(SessionExists):
            client.import_session("once", source.export())
    # What has ended may begin again, of another model; who asks for the one that was is told how the last one ended.
    with client.session("once") as session:
        assert session.delete()
    with client.session("once") as session:
        assert session.model == "copy"
        assert session.delete()
    with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND) as metadata:
        door.session("once")
    assert metadata["incarnation"] == str(session.incarnation)


def test_a_blob_comes_to_the_model_that_it_is_of(client: Client) -> None:
    with client.session("exported", model="risk") as session:
        session.step(inputs(0))
        blob = session.export()
        with client.import_session("imported", blob) as imported:
            assert imported.model == "risk"
            assert imported.step(inputs(1)).tobytes() == session.step(inputs(1)).tobytes()
    digest = client.model("risk").digest
    other = blob.replace(digest.encode(), ("0" * len(digest)).encode())
    with pytest.raises(ModelMismatch, match=r"the blob belongs to model 000000000000, this server runs copy \("):
        client.import_session("foreign", other)


def test_lists_are_of_all_models_or_of_one(client: Client) -> None:
    for number in range(7):
        client.session(f"list-{number}", model="risk" if number % 3 else None)
    for page_size in (1, 2, 3, 100):
        listed = [(info.id, info.model) for info in client.sessions("list-", page_size)]
        assert listed == [(f"list-{number}", "risk" if number % 3 else "copy") for number in range(7)]
        of_risk = [info.id for info in client.sessions("list-", page_size, model="risk")]
        assert of_risk == [f"list-{number}" for number in (1, 2, 4, 5)]
    with pytest.raises(ModelNotFound):
        list(client.sessions(model="riks"))


def test_one_stream_carries_sessions_of_both(client: Client) -> None:
    with client.multiplex(streams=1) as together:
        sessions = [together.session(f"mixed-{number}", model=["copy", "risk"][number % 2]) for number in range(6)]
        for seed in range(3):
            sent = {
                session: inputs(seed) if session.model == "risk" else random_inputs(seed, 3) for session in sessions
            }
            outputs = together.step(sent)
            for session, values in sent.items():
                with client.session() if session.model == "copy" else client.session(model="risk") as alone:
                    for before in range(seed):
                        alone.step(inputs(before) if session.model == "risk" else random_inputs(before, 3))
                    assert outputs[session].tobytes() == alone.step(values).tobytes()


def test_a_stream_follows_an_id_to_another_model(door: Door) -> None:
    """Its session ends, and another one of the id begins, with other outputs, while the stream is open."""
    door.create("turning", model="risk")
    messages: SimpleQueue[pb.StreamRequest | None] = SimpleQueue()
    replies = door.stub.Stream(iter(messages.get, None), timeout=TIMEOUT)
    messages.put(pb.StreamRequest(chunk=chunk("turning", inputs(0))))
    assert next(replies).chunk.outputs.shape == [3, LSTM_UNITS]
    door.stub.DeleteSession(pb.DeleteSessionRequest(session_id="turning"), timeout=TIMEOUT)
    door.create("turning")
    messages.put(pb.StreamRequest(chunk=chunk("turning", random_inputs(0, 2))))
    assert next(replies).chunk.outputs.shape == [2, OUTPUT_SIZE]
    messages.put(None)


def test_a_state_that_its_caller_keeps_is_of_one_model(client: Client) -> None:
    first = client.step_with_state(inputs(0), model="risk")
    second = client.step_with_state(inputs(1), first.state, model="risk")
    with client.session(model="risk") as session:
        assert session.step(inputs(0)).tobytes() == first.outputs.tobytes()
        assert session.step(inputs(1)).tobytes() == second.outputs.tobytes()
    with pytest.raises(ModelMismatch):
        client.step_with_state(random_inputs(0, 1), first.state)
    with pytest.raises(ModelNotFound):
        client.step_with_state(inputs(0), model="riks")


def test_torchserves_endpoint(door: Door) -> None:
    def called(call: dict) -> pb.CallResult:
        return door.server.call([call_from_json(call)], 60.0)[0]

    assert called({"create_session": {"session_id": "called", "model": "risk"}}).create_session.session.model == "risk"
    result = called({"step": {"session_id": "called", "inputs": inputs(0).tolist()}}).step.result
    assert outputs_of(result).shape == (3, LSTM_UNITS)
    assert called({"dump_memory": {"session_id": "called"}}).dump_memory.position == 3
    assert [model.name for model in called({"list_models": {}}).list_models.models] == ["copy", "risk"]
    assert called({"get_model": {"model": "risk"}}).get_model.name == "risk"
    blob = called({"export_session": {"session_id": "called"}}).export_session.data
    request = pb.Call(import_session=pb.ImportSessionRequest(session_id="called-too", data=blob))
    assert door.server.call([request], 60.0)[0].import_session.session.model == "risk"


# Triton's protocol.


def infer(model: str, values: Float32, sequence: str, **flags: bool) -> inference_pb2.ModelInferRequest:
    made = inference_pb2.ModelInferRequest(model_name=model, raw_input_contents=[values.tobytes()])
    made.inputs.add(name="INPUT", datatype="FP32", shape=values.shape)
    made.parameters["sequence_id"].string_param = sequence
    for name, value in flags.items():
        made.parameters[name].bool_param = value
    return made


def test_triton_names_the_model(door: Door, client: Client) -> None:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(door.channel)
    for name, size in (("copy", OUTPUT_SIZE), ("risk", LSTM_UNITS)):
        assert stub.ModelReady(inference_pb2.ModelReadyRequest(name=name), timeout=TIMEOUT).ready
        metadata = stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name=name), timeout=TIMEOUT)
        assert (metadata.name, list(metadata.outputs[0].shape)) == (name, [-1, size])
        config = stub.ModelConfig(inference_pb2.ModelConfigRequest(name=name), timeout=TIMEOUT).config
        assert config.name == name
    index = stub.RepositoryIndex(inference_pb2.RepositoryIndexRequest(), timeout=TIMEOUT).models
    assert [(model.name, model.version, model.state) for model in index] == [
        ("copy", "1", "READY"), ("risk", "1", "READY"),
    ]  # fmt: skip
    with refused("MODEL_NOT_FOUND", StatusCode.NOT_FOUND):
        stub.ModelReady(inference_pb2.ModelReadyRequest(name="riks"), timeout=TIMEOUT)

    def counted(name: str) -> int:
        asked = inference_pb2.ModelStatisticsRequest(name=name)
        return stub.ModelStatistics(asked, timeout=TIMEOUT).model_stats[0].inference_count

    before = counted("copy"), counted("risk")
    answer = stub.ModelInfer(infer("risk", inputs(0), "7", sequence_start=True), timeout=TIMEOUT)
    assert answer.model_name == "risk"
    with client.session(model="risk") as alone:
        assert answer.raw_output_contents[0] == alone.step(inputs(0)).tobytes()
    assert (counted("copy"), counted("risk")) == (before[0], before[1] + 6)
    # A sequence belongs to the model that it began with.
    with refused("BAD_REQUEST", StatusCode.INVALID_ARGUMENT):
        stub.ModelInfer(infer("copy", random_inputs(0, 1), "7"), timeout=TIMEOUT)
    with refused("SESSION_EXISTS", StatusCode.ALREADY_EXISTS):
        stub.ModelInfer(infer("copy", random_inputs(0, 1), "7", sequence_start=True), timeout=TIMEOUT)
    assert client.session("7").position == 3
    stub.ModelInfer(infer("risk", inputs(1), "7", sequence_end=True), timeout=TIMEOUT)
    stub.ModelInfer(infer("copy", random_inputs(0, 1), "7", sequence_start=True), timeout=TIMEOUT)
    stream = stub.ModelStreamInfer(
        iter([infer("copy", random_inputs(1, 1), "7"), infer("risk", inputs(0), "8", sequence_start=True)]),
        timeout=TIMEOUT,
    )
    assert sorted(answer.infer_response.model_name for answer in stream) == ["copy", "risk"]


# What all of them share.


def test_each_model_has_its_part_of_the_state_folder(artifact_folder: Path, lstm: Path, tmp_path: Path) -> None:
    """Sessions are found again whatever else is served, and in which order."""
    with open_door(artifact_folder, tmp_path) as door:
        door.create("old")
        door.step("old", random_inputs(0, 2))
    with open_door(artifact_folder, tmp_path, {"risk": lstm}) as door:
        assert (door.session("old").position, door.session("old").model) == (2, "copy")
        door.create("new", model="risk")
        door.step("new", inputs(0))
    assert (tmp_path / "sessions.db").is_file() and (tmp_path / "models" / "risk" / "sessions.db").is_file()
    with open_door(lstm, tmp_path, model=[f"risk={lstm}"]) as door:
        assert (door.session("new").position, door.session("new").model) == (3, "risk")
        with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND):
            door.session("old")


def test_a_shared_store(artifact_folder: Path, lstm: Path, tmp_path: Path) -> None:
    """Ids are one session's there too, at whichever server, and of whichever model."""
    with running_redis() as redis:

        def server(name: str) -> object:
            return open_door(artifact_folder, tmp_path / name, {"risk": lstm}, store=redis.url, lease_s=60.0)

        with server("a") as a, server("b") as b:
            a.create("shared", model="risk")
            first = outputs_of(a.step("shared", inputs(0)))
            for model in ("", "copy", "risk"):
                with pytest.raises(RpcError) as caught:
                    b.create("shared", model=model)
                assert (caught.value.code() is StatusCode.ALREADY_EXISTS) == (model == "copy"), caught.value
                assert ("is served by" in caught.value.details()) == (model != "copy")
            with Client([b.addresses.grpc, a.addresses.grpc]) as client:
                assert [(info.id, info.model) for info in client.sessions()] == [("shared", "risk")]
                with client.session("shared", create=False) as session:
                    assert session.model == "risk"
                    second = session.step(inputs(1))
            b.create("another")
        with server("c") as c, Client(c.addresses.grpc) as client:
            assert [(info.id, info.model) for info in client.sessions()] == [("another", "copy"), ("shared", "risk")]
            with client.session(model="risk") as alone:
                assert [alone.step(inputs(seed)).tobytes() for seed in range(2)] == [first.tobytes(), second.tobytes()]
            with client.session("shared", create=False) as session:
                assert session.position == 6


def test_a_token_has_its_limits_for_all_models(artifact_folder: Path, lstm: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    tokens.write_text(f'[[token]]\nname = "ward"\nsha256 = "{digest}"\nmax_sessions = 2\n')
    assert Access(str(tokens)).required
    with (
        open_door(artifact_folder, tmp_path / "state", {"risk": lstm}, tokens=str(tokens)) as door,
        Client(door.addresses.grpc, token="secret") as client,
    ):
        client.session("a")
        client.session("b", model="risk")
        for model in ("copy", "risk"):
            with pytest.raises(Exception, match="'ward' has 2 sessions, at most 2 may be"):
                client.session("c", model=model)


def test_what_the_machine_may_hold_is_divided(artifact_folder: Path, lstm: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, {"risk": lstm}, max_sessions=4, slots=6) as door:
        for one in door.server._models.all:
            assert (one.engine.config.max_sessions, one.engine.config.slots) == (2, 3)
        door.create("a")
        door.create("b")
        with refused("SESSION_LIMIT", StatusCode.RESOURCE_EXHAUSTED):
            door.create("c")
        door.create("c", model="risk")
        assert scrape(door)["dnc_sessions", "slot"] == 3
        with urllib.request.urlopen(f"http://{door.addresses.metrics}/metrics", timeout=TIMEOUT) as page:
            shown = page.read().decode()
        for model, sessions in (("copy", 2), ("risk", 1)):
            assert f'dnc_model_sessions{{model="{model}",version="1"}} {sessions}.0' in shown
