"""What changes the bits of a timestep between two starts is known, so that nothing passes for damage."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.client import Client
from dnc_serve.client.arrays import Float32
from tests.handler.harness import random_inputs

REPOSITORY = Path(__file__).parents[2]
SERVE = """
import sys
from pathlib import Path
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.server import DncServer
config = ServeConfig(state_dir=Path(sys.argv[2]), port=0, metrics_port=0, durability="sync", code="torchscript")
server = DncServer(config, [Path(sys.argv[1])], "cpu")
print(server.start().grpc, flush=True)
sys.stdin.read()
"""
# Other instructions, another order of adding up, another library's ways: each changes bits of some processor.
CHANGES = [
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_CBWR": "SSE4_2"},
    {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41", "DNNL_MAX_CPU_ISA": "SSE41"},
    {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F"},
]


class Served:
    """A server in a process of its own, killed at the end."""

    def __init__(self, artifact: Path, state: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(artifact), str(state)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
            env={**os.environ, **environment},
        )  # fmt: skip

    def __enter__(self) -> Client:
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        assert address
        self._client = Client(address)
        return self._client

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def computed(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Float32]:
    """A state folder with a session of 300 timesteps, the server's fingerprint, and what 20 more give."""
    state = tmp_path_factory.mktemp("state")
    with Served(artifact_folder, state, {}) as client:
        session = client.session("s")
        session.step(random_inputs(1, 300))
        fingerprint = client.model().fingerprint
        after = session.fork().step(random_inputs(2, 20))
    return state, fingerprint, after


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: " ".join(change.values()))
def test_a_recovery_elsewhere_is_close_and_marked(
    change: dict[str, str], computed: tuple[Path, str, Float32], artifact_folder: Path, tmp_path: Path
) -> None:
    state, fingerprint, after = computed
    for file in state.glob("sessions.db*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with Served(artifact_folder, tmp_path, change) as client:
        assert client.model().fingerprint != fingerprint
        session = client.session("s", create=False)
        np.testing.assert_allclose(session.step(random_inputs(2, 20)), after, atol=1e-4)
        assert session.info().replayed_elsewhere


def test_the_same_start_again_is_the_same(
    computed: tuple[Path, str, Float32], artifact_folder: Path, tmp_path: Path
) -> None:
    """Threads, which there is one of, and what is only printed, change nothing."""
    state, fingerprint, after = computed
    for file in state.glob("sessions.db*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    same = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "MKL_VERBOSE": "0", "MALLOC_ARENA_MAX": "1"}
    with Served(artifact_folder, tmp_path, same) as client:
        assert client.model().fingerprint == fingerprint
        session = client.session("s", create=False)
        assert session.step(random_inputs(2, 20)).tobytes() == after.tobytes()
        assert not session.info().replayed_elsewhere
