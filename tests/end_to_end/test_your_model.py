"""docs/your-model.md: all of its blocks, and models that no one here wrote through a `kill -9`."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from torch import Tensor, nn

from dnc_serve.client import Client
from dnc_serve.model import export
from dnc_serve.model.contract import ContractError
from dnc_serve.model.recurrent import of_torch
from tests.documents import ROOT, block, run_python, run_shell
from tests.end_to_end.servers import running

PAGE = "docs/your-model.md"
# Of the page, by the file that it names and what that has.
MODELS = {
    "lstm": ("my_lstm", "lstm"),
    "gru": ("my_lstm", "gru"),
    "cfc": ("my_ncps", "Liquid"),
    "ltc": ("my_ncps", "ltc"),
    "mamba": ("my_mamba", "Stepping"),
    "mingru": ("my_mingru", "Stepping"),
    "xlstm": ("my_xlstm", "Stepping"),
}
Array = np.ndarray


def load(name: str, folder: Path) -> ModuleType:
    """The page's file of that name, written and imported."""
    path = folder / f"{name}.py"
    path.write_text(block(PAGE, "python", f"# {name}.py"))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_five_minutes_from_a_module_to_a_session(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(block(PAGE, "python", "# my_model.py"))
    *commands, serve = block(PAGE, "sh", "dnc export").splitlines()
    assert serve == "dnc serve --model artifact"
    run_shell("\n".join(commands), tmp_path)
    with running(tmp_path / "artifact", tmp_path / "server") as server:
        used = block(PAGE, "python", "microphone-3").replace("localhost:8500", server.grpc)
        assert run_python(used, tmp_path) == "(80,)\n"
        frames = np.random.default_rng(2).random((8, 80))  # of float64, as a client may send them
        with Client(server.grpc) as client, client.session("killed") as session, client.session("whole") as whole:
            first = session.step(frames[:5])
            server.worker().kill()
            rest = session.step(frames[5:])
            assert np.concatenate([first, rest]).tobytes() == whole.step(frames).tobytes()


class Served:
    """Servers of all models in one process, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.addresses: dict[str, str] = {}

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.end_to_end.many_servers", str(self._folder)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.addresses = dict(line.split() for line in iter(self._process.stdout.readline, "\n") if line)
        assert self.addresses.keys() == MODELS.keys()

    def fields(self, model: str) -> list[str]:
        """Of its state, by name."""
        manifest = json.loads((self._folder / model / "artifact" / "manifest.json").read_text())
        return [field["name"] for field in manifest["state"]]

    def kill(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nn.Module]:
    folder = tmp_path_factory.mktemp("modules")
    torch.manual_seed(1)
    return {model: getattr(load(file, folder), name)() for model, (file, name) in MODELS.items()}


@pytest.fixture(scope="module")
def answers() -> dict[str, Array]:
    """What the session of each model was answered before the kill."""
    return {}


@pytest.fixture(scope="module")
def served(
    modules: dict[str, nn.Module], answers: dict[str, Array], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Killed while all models had a session, and started again."""
    folder = tmp_path_factory.mktemp("served")
    for model, module in modules.items():
        export(module, folder / model / "artifact")
    served = Served(folder)
    served.start()
    try:
        for model, address in served.addresses.items():
            first, second, _ = chunks(model)
            with Client(address) as client, client.session("killed") as session:
                answers[model] = np.concatenate([session.step(first), session.step(second)])
        served.kill()
        served.start()
        yield served
    finally:
        served.kill()


def chunks(model: str) -> list[Array]:
    """Three of 5, 4 and 6 timesteps."""
    random = np.random.default_rng(3)
    if model == "mingru":
        return [random.integers(0, 256, timesteps) for timesteps in (5, 4, 6)]
    size = 16 if model in ("mamba", "xlstm") else 8
    return [random.normal(size=(timesteps, size)).astype(np.float32) for timesteps in (5, 4, 6)]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_of_others_goes_on_after_a_kill_to_the_bit(
    model: str, served: Served, modules: dict[str, nn.Module], answers: dict[str, Array]
) -> None:
    first, second, third = chunks(model)
    with Client(served.addresses[model]) as client, client.session("killed") as session:
        assert session.position == 9
        went_on = np.concatenate([answers[model], session.step(third)])
        with client.session("whole") as whole:
            undisturbed = whole.step(np.concatenate([first, second, third]))
            assert went_on.tobytes() == undisturbed.tobytes()
            expected = stepped(modules[model], np.concatenate([first, second, third]))
            np.testing.assert_allclose(undisturbed, expected, rtol=0, atol=1e-5)
        fork = session.fork(position=5)
        with client.session("forked") as forked:
            forked.step(first)
            assert fork.step(third).tobytes() == forked.step(third).tobytes()
        assert set(session.dump()) == set(served.fields(model))


def stepped(module: nn.Module, inputs: Array) -> Array:
    """By the module itself."""
    stepping: Any = (of_torch(module) or module).eval()
    state, outputs = stepping.initial_state(1), []
    with torch.no_grad():
        for x in torch.from_numpy(inputs):
            output, state = stepping.step(x[None], state)
            outputs.append(output[0].numpy())
    return np.stack(outputs)


def test_what_cannot_be_served_is_told_as_the_page_tells_it(tmp_path: Path) -> None:
    from titans_pytorch import NeuralMemory

    class Titans(nn.Module):
        input_size = 16

        def __init__(self) -> None:
            super().__init__()
            self.memory = NeuralMemory(dim=16, chunk_size=1)

        def initial_state(self, batch_size: int) -> Any:
            return self.memory(torch.zeros(batch_size, 1, 16))[1]

        def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            output, state = self.memory(x[:, None], state=state)
            return output[:, 0], state

    [told] = re.findall(r"^initial_state gives .*; …$", (ROOT / PAGE).read_text(), re.MULTILINE)
    with pytest.raises(ContractError) as caught:
        export(Titans(), tmp_path)
    assert str(caught.value).startswith(told.removesuffix("…"))


def test_a_recurrent_policy_is_stepped_in_a_loop_of_gymnasium(tmp_path: Path) -> None:
    width = {"lstm_hidden_size": 32, "net_arch": [16]}
    ppo = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=16, batch_size=16, seed=1, policy_kwargs=width)
    ppo.save(tmp_path / "ppo.zip")
    load("my_policy", tmp_path)
    run_shell("dnc export my_policy:build -o artifact", tmp_path)
    with running(tmp_path / "artifact", tmp_path / "server", "--runtime", "plain") as server:
        loop = block(PAGE, "python", "gymnasium.make").replace("localhost:8500", server.grpc)
        run_python(loop, tmp_path)
        with Client(server.grpc) as client, client.session("cart-1") as session, client.session("cart-2") as other:
            assert session.position == 100
            acts_as_the_policy(other, ppo)


def acts_as_the_policy(session: Any, ppo: RecurrentPPO) -> None:
    """Over some episodes."""
    environment = gymnasium.make("CartPole-v1")
    observation, state, begins, episodes = environment.reset(seed=2)[0], None, True, 0
    while episodes < 3:
        [logits] = session.step(observation[None], reset_experience=begins)
        starts = np.array([begins])
        action, state = ppo.predict(observation, state, starts, deterministic=True)
        assert logits.argmax() == action
        observation, _, terminated, truncated, _ = environment.step(action)
        begins = terminated or truncated
        if begins:
            observation, episodes = environment.reset()[0], episodes + 1
