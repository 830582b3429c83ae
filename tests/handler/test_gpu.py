"""On a GPU; `TEST_DEVICE=cpu` tries these tests themselves where there is none."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dnc_serve.client import Client
from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.model.artifact import load_artifact
from tests.handler.harness import random_inputs
from tests.server_process import ServerProcess

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SESSIONS = 13


def test_tiles_agree_with_each_other_and_nearly_with_the_cpu(artifact_folder: Path, tiles: TileRunner) -> None:
    on_device = TileRunner(load_artifact(artifact_folder, DEVICE), DEVICE)
    assert len(on_device.row_counts) > 1
    given = [random_inputs(row, 1 + row) for row in range(SESSIONS)]
    outputs = []
    for runner in (on_device, tiles):
        rows = StateRows(2 * SESSIONS, runner.layout, runner.device)
        outputs.append(np.concatenate(runner.step(rows, range(SESSIONS), range(SESSIONS, 2 * SESSIONS), given)[0]))
    assert np.abs(outputs[0] - outputs[1]).max() <= 1e-4


def test_sessions_have_the_same_bits_alone_in_company_and_after_a_kill(artifact_folder: Path, tmp_path: Path) -> None:
    server = ServerProcess(artifact_folder, tmp_path / "state", device=DEVICE, code="torchscript", slots=8)
    inputs = [random_inputs(seed, 40) for seed in range(SESSIONS)]
    server.start()
    try:
        with Client(server.address) as client, ThreadPoolExecutor(SESSIONS) as pool:

            def alone(number: int) -> Float32:
                with client.session() as session:
                    return session.step(inputs[number])

            def in_company(number: int) -> Float32:
                with client.session(f"s-{number}") as session:
                    at = session.position
                    return np.concatenate([session.step(each[None]) for each in inputs[number][at : at + 20]])

            expected = [alone(number) for number in range(SESSIONS)]
            first = list(pool.map(in_company, range(SESSIONS)))
            server.kill()
            server.start()
            second = list(pool.map(in_company, range(SESSIONS)))
            for own, before, after in zip(expected, first, second, strict=True):
                assert np.concatenate([before, after]).tobytes() == own.tobytes()
    finally:
        server.kill()
