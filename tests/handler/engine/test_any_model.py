"""A model that is no DNC, with a state of every dtype, served by its program: all that a session promises."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dnc_serve.client import BadDtype, BadShape, Client
from dnc_serve.handler.api.call_json import call_from_json, to_json
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.model import export, load_artifact
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.inference import inference_pb2, inference_pb2_grpc
from tests.handler.door import TIMEOUT, Door, chunk, open_door, outputs_of, refused

Array = np.ndarray


class Ledger(nn.Module):
    """Counts and remembers the symbols [2] that it is shown, in all dtypes; a new one isn't all zero."""

    example_input = torch.zeros(2, dtype=torch.uint8)
    experience = ("seen", "recent")

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 5)
        self.cell = nn.GRUCell(10, 7)

    def initial_state(self, batch_size: int) -> dict[str, object]:
        return {
            "seen": torch.zeros(batch_size, 256, dtype=torch.bool),
            "counts": (
                torch.full((batch_size,), 1 << 40, dtype=torch.int64),
                torch.zeros(batch_size, dtype=torch.int8),
            ),
            "hidden": torch.full((batch_size, 7), 0.25),
            "half": torch.ones(batch_size, 3, dtype=torch.float16),
            "recent": torch.ones(batch_size, 2, 5, dtype=torch.bfloat16),
            "least": torch.full((batch_size, 1), float("inf")),
        }

    def step(self, x: Tensor, state: dict) -> tuple[Tensor, dict]:
        total, number = state["counts"]
        embedded = self.embedding(x.int())
        hidden = self.cell(embedded.flatten(1), state["hidden"])
        after = {
            "seen": state["seen"] | nn.functional.one_hot(x.long(), 256).any(1),
            "counts": (total + x.long().sum(1), number + 1),
            "hidden": hidden,
            "half": state["half"] * 0.75,
            "recent": (state["recent"] * 0.5 + embedded.to(torch.bfloat16)),
            "least": torch.minimum(state["least"], x.float().amin(1, keepdim=True)),
        }
        return torch.cat([hidden, after["seen"].sum(1, keepdim=True).float()], 1), after


def symbols(seed: int, timesteps: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (timesteps, 2), np.uint8)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("ledger")
    export(Ledger(), folder)
    return folder


@pytest.fixture(scope="module")
def runner(ledger: Path) -> ModelRunner:
    return choose_runner(load_artifact(ledger), "cpu", "auto", [])


@pytest.fixture
def door(ledger: Path, tmp_path: Path) -> Iterator[Door]:
    with open_door(ledger, tmp_path / "state") as door:
        yield door


def alone(runner: ModelRunner, *chunks: Array) -> tuple[Array, Array]:
    """Outputs and the last state [S] of a session that has no company."""
    rows = StateRows(1, runner.layout, runner.device)
    rows.write(0, None)
    outputs = [runner.step(rows, [0], [0], [chunk])[0][0] for chunk in chunks]
    return np.concatenate(outputs), rows.read(0)


def test_the_model_is_described_field_by_field(door: Door) -> None:
    model = door.stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT)
    assert (list(model.inputs.shape), model.inputs.data_type) == ([2], pb.DATA_TYPE_UINT8)
    assert (list(model.outputs.shape), model.outputs.data_type) == ([8], pb.DATA_TYPE_FLOAT32)
    assert model.artifact == "program"
    assert model.artifact_note == "only a DNC has a row kernel"
    assert not model.config_json
    assert not model.derived
    fields = {field.name: (list(field.shape), field.dtype, field.experience) for field in model.state}
    assert fields == {
        "counts.0": ([], "int64", False),
        "counts.1": ([], "int8", False),
        "half": ([3], "float16", False),
        "hidden": ([7], "float32", False),
        "least": ([1], "float32", False),
        "recent": ([2, 5], "bfloat16", True),
        "seen": ([256], "bool", True),
    }


def test_outputs_and_state_are_the_modules(door: Door) -> None:
    torch.manual_seed(3)
    module, inputs = Ledger().eval(), symbols(1, 12)
    state = module.initial_state(1)
    expected = []
    with torch.no_grad():
        for x in torch.from_numpy(inputs):
            output, state = module.step(x[None], state)
            expected.append(output[0].numpy())
    door.create("s")
    np.testing.assert_allclose(outputs_of(door.step("s", inputs)), np.stack(expected), rtol=0, atol=1e-6)
    dump = door.dump("s")
    for name, tensor in [("counts.0", state["counts"][0]), ("counts.1", state["counts"][1]), ("seen", state["seen"])]:
        assert dump[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(dump[name], tensor.numpy())
    np.testing.assert_array_equal(dump["half"], state["half"].numpy())
    np.testing.assert_array_equal(dump["recent"], state["recent"].float().numpy())


def test_company_changes_no_bit(runner: ModelRunner) -> None:
    sessions = [[symbols(10 * session + part, 1 + (session + part) % 5) for part in range(4)] for session in range(20)]
    rows = StateRows(40, runner.layout, runner.device)
    for session in range(20):
        rows.write(session, None)
    outputs: list[list[Array]] = [[] for _ in sessions]
    for part in range(4):
        for start in range(0, 20, runner.max_rows):
            some = range(start, min(20, start + runner.max_rows))
            stepped, finite = runner.step(rows, list(some), list(some), [sessions[session][part] for session in some])
            assert all(finite)
            for session, output in zip(some, stepped, strict=True):
                outputs[session].append(output)
    for session, chunks in enumerate(sessions):
        expected, state = alone(runner, *chunks)
        assert np.concatenate(outputs[session]).tobytes() == expected.tobytes()
        assert rows.read(session).tobytes() == state.tobytes()


def test_what_was_answered_survives_a_crash_to_the_bit(ledger: Path, runner: ModelRunner, tmp_path: Path) -> None:
    chunks = [symbols(seed, 7) for seed in range(6)]
    with open_door(ledger, tmp_path / "state", snapshot_every_timesteps=16) as door:
        door.create("s")
        answered = [door.step("s", chunk, position=7 * number) for number, chunk in enumerate(chunks[:4])]
        before = door.dump("s")
        door.server._models.default.engine.snapshots.store_all = (
            _nothing  # as if it were killed: records alone are there
        )
    with open_door(ledger, tmp_path / "state") as door:
        assert door.session("s").position == 28
        after = door.dump("s")
        assert {name: array.tobytes() for name, array in after.items()} == {
            name: array.tobytes() for name, array in before.items()
        }
        again = door.step("s", chunks[3], position=21)
        assert again.replayed
        assert again.outputs == answered[3].outputs
        rest = [door.step("s", chunk) for chunk in chunks[4:]]
    expected, _ = alone(runner, *chunks)
    assert np.concatenate([outputs_of(each) for each in (*answered, *rest)]).tobytes() == expected.tobytes()


async def _nothing(sessions: object) -> None:
    pass


def test_forks_go_back_in_time_and_travel(door: Door, runner: ModelRunner) -> None:
    first, second, other = symbols(1, 9), symbols(2, 4), symbols(3, 4)
    door.create("s")
    door.step("s", first)
    door.step("s", second)
    door.stub.ForkSession(pb.ForkSessionRequest(session_id="s", fork_session_id="f", position=9), timeout=TIMEOUT)
    assert outputs_of(door.step("f", other)).tobytes() == alone(runner, first, other)[0][9:].tobytes()
    parts = door.stub.ExportSession(pb.ExportSessionRequest(session_id="s"), timeout=TIMEOUT)
    blob = b"".join(part.data for part in parts)
    request = pb.ImportSessionRequest(session_id="i", total_bytes=len(blob), data=blob)
    assert door.stub.ImportSession(iter([request]), timeout=TIMEOUT).session.position == 13
    assert outputs_of(door.step("i", other)).tobytes() == alone(runner, first, second, other)[0][13:].tobytes()


@pytest.mark.parametrize("scope", [pb.RESET_SCOPE_EXPERIENCE, pb.RESET_SCOPE_ALL])
def test_a_reset_puts_back_what_was_initial(door: Door, scope: pb.ResetScope) -> None:
    door.create("s")
    door.create("new")
    new = door.dump("new")
    assert new["hidden"].tolist() == [[0.25] * 7]
    assert new["recent"].all()
    door.step("s", symbols(1, 5))
    stepped = door.dump("s")
    reset = pb.Reset(session_id="s", scope=scope)
    door.stub.ResetSession(pb.ResetSessionRequest(reset=reset), timeout=TIMEOUT)
    for name, array in door.dump("s").items():
        cleared = scope == pb.RESET_SCOPE_ALL or name in ("seen", "recent")
        assert array.tobytes() == (new if cleared else stepped)[name].tobytes(), name


def test_a_reset_before_a_chunk(door: Door, runner: ModelRunner) -> None:
    door.create("s")
    door.step("s", symbols(1, 5))
    door.step("s", symbols(2, 3), reset_experience=True)
    door.create("t")
    door.step("t", symbols(1, 5))
    door.stub.ResetSession(pb.ResetSessionRequest(reset=pb.Reset(session_id="t")), timeout=TIMEOUT)
    door.step("t", symbols(2, 3))
    assert {n: a.tobytes() for n, a in door.dump("s").items()} == {n: a.tobytes() for n, a in door.dump("t").items()}


def test_debug_gives_the_state_after_each_timestep(door: Door) -> None:
    inputs = symbols(1, 3)
    door.create("s")
    door.create("by-one")
    result = door.step("s", inputs, debug=True)
    for timestep in range(3):
        door.step("by-one", inputs[timestep : timestep + 1])
        for name, array in door.dump("by-one").items():
            whole = result.debug[name]
            assert whole.shape[0] == 3
            size = len(whole.data) // 3
            assert whole.data[timestep * size : (timestep + 1) * size] == array[0].tobytes()


def test_a_watcher_sees_every_field(door: Door) -> None:
    door.create("s")
    door.step("s", symbols(1, 3))
    frames = door.stub.WatchMemory(pb.WatchMemoryRequest(session_id="s", max_cells=16), timeout=TIMEOUT)
    frame = next(frames)
    frames.cancel()
    assert list(frame.arrays["seen"].full_shape) == [1, 256]
    assert frame.arrays["seen"].array.shape[1] <= 16
    assert frame.arrays["counts.0"].array.data == door.dump("s")["counts.0"].tobytes()


def test_a_model_without_an_experience_says_what_to_do(tmp_path: Path) -> None:
    export(nn.LSTM(3, 4), tmp_path / "artifact")
    with open_door(tmp_path / "artifact", tmp_path / "state") as door:
        door.create("s")
        inputs = np.ones((2, 3), np.float32)
        door.step("s", inputs)
        with refused("BAD_REQUEST", grpc.StatusCode.INVALID_ARGUMENT) as metadata:
            door.stub.ResetSession(pb.ResetSessionRequest(reset=pb.Reset(session_id="s")), timeout=TIMEOUT)
        assert metadata["expected"] == "RESET_SCOPE_ALL"
        with refused("BAD_REQUEST", grpc.StatusCode.INVALID_ARGUMENT):
            door.step("s", inputs, reset_experience=True)
        assert door.session("s").position == 2


class Counter(nn.Module):
    """Integers in, integers out: how many of each of four symbols it has seen."""

    example_input = torch.zeros((), dtype=torch.int64)

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, 4, dtype=torch.int32)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        after = state + nn.functional.one_hot(x, 4)
        return after.to(torch.int16), after.to(torch.int32)


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("counter")
    export(Counter(), folder / "artifact")
    with open_door(folder / "artifact", folder / "state") as door:
        yield door


@pytest.mark.parametrize("endpoint", ["unary", "stream", "json"])
def test_integers_come_and_go_at_every_endpoint(counter: Door, endpoint: str) -> None:
    counter.create(endpoint)
    inputs = np.array([0, 3, 3, 1])
    expected = [[1, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 2], [1, 1, 0, 2]]
    if endpoint == "json":
        payload = {"step": {"chunk": {"session_id": endpoint, "inputs": inputs.tolist()}}}
        (answer,) = counter.server.call([call_from_json(json.dumps(payload).encode())], 30.0)
        assert json.loads(to_json(answer))["step"]["result"]["outputs"] == expected
        return
    if endpoint == "stream":
        (response,) = counter.stream([pb.StreamRequest(chunk=chunk(endpoint, inputs))])
        result = response.chunk
    else:
        result = counter.step(endpoint, inputs)
    assert result.outputs.dtype == pb.DATA_TYPE_INT16
    assert outputs_of(result).tolist() == expected
    assert counter.dump(endpoint)["state"].tolist() == [[1, 1, 0, 2]]


def test_the_client_takes_and_gives_the_models_dtypes(counter: Door) -> None:
    with Client(counter.addresses.grpc) as client, client.session("client") as session:
        outputs = session.step([1, 1, 2])
        assert (outputs.dtype, outputs.tolist()) == (np.int16, [[0, 1, 0, 0], [0, 2, 0, 0], [0, 2, 1, 0]])
        assert session.dump()["state"].tolist() == [0, 2, 1, 0]
        with pytest.raises(BadDtype, match=r"input 0\.5 .* expected numbers of int64"):
            session.step([0.5])
        with pytest.raises(BadShape, match=r"\[1, 1\], expected \[timesteps\]"):
            session.step([[1]])
        assert str(client.model().inputs) == "int64[]"


def test_what_is_not_finite_is_a_word_in_json(door: Door) -> None:
    door.create("s")
    payload = json.dumps({"dump_memory": {"session_id": "s", "names": ["least", "seen"]}}).encode()
    (answer,) = door.server.call([call_from_json(payload)], 30.0)
    arrays = json.loads(to_json(answer))["dump_memory"]["arrays"]
    assert arrays == {"least": [["Infinity"]], "seen": [[False] * 256]}


def test_tritons_protocol_has_its_tensors(door: Door) -> None:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(door.channel)
    metadata = stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name="copy"), timeout=TIMEOUT)
    (given,), (answered,) = metadata.inputs, metadata.outputs
    assert (given.datatype, [*given.shape], answered.datatype, [*answered.shape]) == ("UINT8", [-1, 2], "FP32", [-1, 8])
    inputs = symbols(5, 6)
    door.create("expected")
    expected = outputs_of(door.step("expected", inputs))
    for number, as_contents in enumerate((False, True)):
        asked = inference_pb2.ModelInferRequest(model_name="copy")
        asked.parameters["sequence_id"].int64_param = number + 1
        asked.parameters["sequence_start"].bool_param = True
        tensor = asked.inputs.add(name="INPUT", datatype="UINT8", shape=inputs.shape)
        if as_contents:
            tensor.contents.uint_contents.extend(inputs.ravel().tolist())
        else:
            asked.raw_input_contents.append(inputs.tobytes())
        answer = stub.ModelInfer(asked, timeout=TIMEOUT)
        assert answer.raw_output_contents[0] == expected.tobytes()
