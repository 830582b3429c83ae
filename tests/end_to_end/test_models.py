"""`dnc serve --model copy --model risk=…`: several models behind one address, whatever starts the worker and however
many there are."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.client import Client
from dnc_serve.client.arrays import Float32
from dnc_serve.proto.workers import owner_of
from tests.documents import block, run_python, run_shell
from tests.end_to_end.servers import Server, running
from tests.end_to_end.test_serve import failed_start, serves
from tests.handler.harness import INPUT_SIZE, LSTM_INPUTS, export_lstm
from tests.waiting import wait_until

INPUTS = {"small": INPUT_SIZE, "risk": LSTM_INPUTS}


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_lstm(tmp_path_factory.mktemp("lstm"))


@pytest.fixture(scope="module")
def small(small_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small artifact, under a name that one may say."""
    folder = tmp_path_factory.mktemp("named") / "small"
    folder.symlink_to(small_artifact)
    return folder


@pytest.fixture(
    scope="module", params=[("torchserve", 1), ("plain", 1), ("plain", 2)], ids=lambda two: "-".join(map(str, two))
)
def machine(
    request: pytest.FixtureRequest, small: Path, lstm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, int]]:
    runtime, workers = request.param
    flags = ("--model", f"risk={lstm}", "--runtime", runtime, "--workers", str(workers))
    with running(small, tmp_path_factory.mktemp("machine"), *flags) as server:
        yield server, workers


def inputs(model: str, seed: int, timesteps: int = 3) -> Float32:
    return np.random.default_rng(seed).standard_normal((timesteps, INPUTS[model])).astype(np.float32)


def dnc(server: Server, *arguments: str, text: str = "") -> str:
    command = [sys.executable, "-m", "dnc_serve.client.cli", *arguments, "--target", server.grpc]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def test_sessions_of_all_models_come_back_with_their_bits(machine: tuple[Server, int]) -> None:
    server, workers = machine
    names = [f"{model}-{number}" for model in INPUTS for number in range(4)]
    assert workers == 1 or {owner_of(name, workers) for name in names if name.startswith("risk")} == {0, 1}
    with Client(server.grpc) as client:
        sessions = {name: client.session(name, model=name.partition("-")[0]) for name in names}
        for name, session in sessions.items():
            session.step(inputs(session.model, 0))
            fork = session.fork(f"fork-of-{name}")
            assert fork.model == session.model
        killed = [server.worker_of(number) for number in range(workers)] if workers > 1 else [server.worker()]
        for process in killed:
            process.kill()
        wait_until(lambda: server.log.count("a worker serves again") >= workers, "the workers are back")
        for name, session in sessions.items():
            with client.session(model=session.model) as alone:
                alone.step(inputs(session.model, 0))
                after = alone.step(inputs(session.model, 1)).tobytes()
            assert session.step(inputs(session.model, 1)).tobytes() == after
            with client.session(f"fork-of-{name}") as fork:
                assert (fork.model, fork.step(inputs(fork.model, 1)).tobytes()) == (session.model, after)
        listed = {info.id: info.model for info in client.sessions() if info.id in sessions}
        assert listed == {name: name.partition("-")[0] for name in names}
    assert serves(server)


def test_the_command_line(machine: tuple[Server, int]) -> None:
    server, _ = machine
    lines = dnc(server, "models").splitlines()
    assert re.match(r"small +1 +[0-9a-f]{12}  .*\(default\)$", lines[0])
    assert re.match(r"risk +1 +[0-9a-f]{12}  float32\[3\]", lines[1])
    assert [json.loads(line)["default"] for line in dnc(server, "models", "--json").splitlines()] == [True, False]
    assert dnc(server, "model", "risk").startswith("model       risk\n")
    assert len(dnc(server, "step", "typed", "--model", "risk", text="1,2,3\n").split(",")) == 8
    assert len(dnc(server, "step", "typed", text="1,2,3\n").split(",")) == 8  # its model is known
    table = dnc(server, "sessions", "--prefix", "typed").splitlines()
    assert table[0].split()[:2] == ["id", "model"]
    assert table[1].split()[:3] == ["typed", "risk", "2"]
    assert dnc(server, "sessions", "--model", "small", "--prefix", "typed").count("\n") == 1
    assert len(dnc(server, "dump", "typed").splitlines()) > 2


def test_metrics_speak_of_each(machine: tuple[Server, int]) -> None:
    server, workers = machine
    with Client(server.grpc) as client, client.session(model="risk") as session:
        session.step(inputs("risk", 0))
        session.delete()
    with urllib.request.urlopen(f"http://{server.addresses['metrics']}/metrics", timeout=60) as page:
        text = page.read().decode()
    for model in INPUTS:
        found = re.findall(rf'^dnc_model_timesteps_total{{model="{model}".*}} (\d+)', text, re.MULTILINE)
        assert len(found) == workers
        assert len(re.findall(rf'^dnc_model_info{{.*name="{model}".*}} 1', text, re.MULTILINE)) == workers
    assert re.search(r'^dnc_model_timesteps_total{model="risk".*} [1-9]', text, re.MULTILINE)


def test_what_is_wrong_is_said_in_one_line(small: Path, tmp_path: Path) -> None:
    for flags, said in (
        (("--model", "risk=no-such-folder"), "model is 'no-such-folder'; expected a bundled model"),
        (("--model", "other"), "expected a NAME= for all but one"),
        (("--model", "small=x"), "expected another name for one of the two models that are called 'small'"),
        (("--model", "a b=x"), "expected a name of 1 to 64"),
        (("--model", "risk=x", "--nr-cells", "4"), "nr_cells is 4 and model is given 2 times"),
    ):
        assert said in failed_start(small, tmp_path, "--runtime", "plain", *flags)[2]


MY_LSTM = """import torch


def build():
    torch.manual_seed(1)
    return torch.nn.LSTM(3, 8)
"""


def test_the_page(tmp_path: Path) -> None:
    """docs/models.md, as it is pasted."""
    export, serve = block("docs/models.md", "sh", "dnc serve").splitlines()
    (tmp_path / "my_lstm.py").write_text(MY_LSTM)
    run_shell(export, tmp_path, PYTHONPATH=str(tmp_path))
    assert serve == "dnc serve --model copy --model risk=artifact"
    flags = ("--runtime", "plain", "--model", f"risk={tmp_path / 'artifact'}")
    with running("copy", tmp_path / "server", *flags) as server:
        said = run_python(block("docs/models.md", "python", "Client(").replace("localhost:8500", server.grpc), tmp_path)
        assert said.splitlines() == ["['copy', 'risk']", "(4, 8) risk", "4", "['customer-7']"]
        run_shell(block("docs/models.md", "sh", "dnc model risk"), tmp_path, DNC_TARGET=server.grpc)
        for number in (2, 3):
            export_lstm(tmp_path / f"artifact_v{number}", number)
        said = run_shell(block("docs/models.md", "sh", "dnc load"), tmp_path, DNC_TARGET=server.grpc)
        assert "session customer-7 is of the model risk, version 3" in said
        assert [line.split()[:2] for line in said.splitlines()[-3:]] == [["copy", "1"], ["risk", "3"], ["risk", "1"]]
