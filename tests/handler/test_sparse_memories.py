"""Sparse memories in a real server: killed, reset, forked, looked into; and why the row kernel does not step them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dnc_serve.client import Client
from dnc_serve.handler.engine.runner_choice import choose_runner
from dnc_serve.handler.errors import ServeError
from dnc_serve.model import DNC, export, load_artifact
from dnc_serve.model.state import memory_shapes
from tests.server_process import ServerProcess

INPUTS = np.random.default_rng(8).standard_normal((40, 3)).astype(np.float32)
CHUNKS = np.split(INPUTS, (8, 19))


@pytest.fixture(scope="module", params=["sparse", "sparse_links"])
def sparse_artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp(request.param) / "artifact"
    export(DNC(3, 16, nr_cells=300, cell_size=8, memory=request.param), folder)
    return folder


@pytest.mark.parametrize("code", ["auto", "program"])
def test_a_killed_server_goes_on_with_the_same_bits(sparse_artifact: Path, tmp_path: Path, code: str) -> None:
    server = ServerProcess(sparse_artifact, tmp_path / "state", code=code, snapshot_every_timesteps=16)
    server.start()
    try:
        outputs = []
        for chunk in CHUNKS:
            with Client(server.address) as client, client.session("killed") as session:
                outputs.append(session.step(chunk))
            if len(outputs) < len(CHUNKS):
                server.kill()
                server.start()
        with Client(server.address) as client:
            with client.session("killed") as session, client.session("whole") as whole:
                assert whole.step(INPUTS).tobytes() == np.concatenate(outputs).tobytes()
                dumps = session.dump(), whole.dump()
                fork = session.fork("fork", position=19)
                assert fork.step(INPUTS[19:]).tobytes() == np.concatenate(outputs[2:]).tobytes()
                session.reset("experience")
                reset = session.dump()
            with client.session("new") as new:
                before = new.dump()
            for name, array in dumps[0].items():
                assert array.tobytes() == dumps[1][name].tobytes(), name
            memory = set(memory_shapes(load_artifact(sparse_artifact).config))
            assert dumps[0]["last_access"].any()
            for name in reset:
                kept = before if name in memory else dumps[0]
                assert np.array_equal(reset[name], kept[name]), name
    finally:
        server.kill()


def test_what_each_timestep_left_is_told_by_name(sparse_artifact: Path, tmp_path: Path) -> None:
    config = load_artifact(sparse_artifact).config
    server = ServerProcess(sparse_artifact, tmp_path / "state")
    server.start()
    try:
        with Client(server.address) as client, client.session("s") as session:
            outputs, debug = session.step(INPUTS[:5], debug=True)
            assert outputs.shape == (5, 3)
            shapes = memory_shapes(config)
            assert {name: array.shape for name, array in debug.items()} == {
                name: (5, int(np.prod(shape))) for name, shape in shapes.items()
            }
            dump = session.dump()
            for name, array in debug.items():
                assert np.array_equal(array[-1], dump[name].ravel()), name
            assert dump["time"].tolist() == [5.0]
            asked = session.dump(["interface"])
            modes = {"read_modes"} if config.memory == "sparse_links" else set()
            assert set(asked) == {"allocation_gates", "write_gates", "read_strengths"} | modes
            model = client.model()
            assert model.artifact == "torchscript"
            assert model.artifact_note == f"it steps dense memories, and this model's is {config.memory}"
            frame = next(iter(session.watch(max_cells=64)))
            assert set(frame.arrays) >= set(shapes)
    finally:
        server.kill()


def test_who_asks_for_the_kernel_is_told_why_not(sparse_artifact: Path) -> None:
    artifact = load_artifact(sparse_artifact)
    with pytest.raises(ServeError, match="the row kernel was asked for and can't be had: it steps dense memories"):
        choose_runner(artifact, "cpu", "kernel", [])
