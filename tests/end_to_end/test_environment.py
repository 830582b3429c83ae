"""A server's start among odd things in the environment, and what it says while it waits."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from dnc_serve.client import Client
from dnc_serve.client.cli.child_server import serve_command
from dnc_serve.handler.runtime.progress import Progress
from tests.end_to_end.servers import Server, running
from tests.end_to_end.test_serve import step
from tests.end_to_end.test_torchserve_door import post
from tests.waiting import wait_until

NOWHERE = "http://127.0.0.1:9"
HOSTILE = {
    "TS_CONFIG_FILE": "/nonexistent/config.properties",
    "TS_INFERENCE_ADDRESS": "http://0.0.0.0:1",
    "LOG_LOCATION": "/nonexistent",
    "METRICS_LOCATION": "/nonexistent",
    "JAVA_TOOL_OPTIONS": "-Xmx1m",
    "JDK_JAVA_OPTIONS": "-Xmx1m",
    "_JAVA_OPTIONS": "-Xmx1m",
    "CLASSPATH": "/nonexistent",
    "PROMETHEUS_MULTIPROC_DIR": "/nonexistent",
    "prometheus_multiproc_dir": "/nonexistent",
    "ENABLE_TORCH_PROFILER": "1",
    "PYTHONPATH": "relative",
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
    "grpc_proxy": NOWHERE,
    "LANG": "C",
    "LC_ALL": "C",
}


@pytest.fixture(scope="module")
def odd_folder() -> Iterator[Path]:
    """Short enough for sockets; all that follows a slash is one name."""
    with TemporaryDirectory(prefix="t m ü#%41\\(p", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def surrounded(runtime: str, small_artifact: Path, odd_folder: Path) -> Iterator[Server]:
    env = {**HOSTILE, "TMPDIR": str(odd_folder)}
    with running(small_artifact, odd_folder / runtime, "--runtime", runtime, env=env) as server:
        yield server


def test_nothing_of_it_reaches_the_server(surrounded: Server, runtime: str, odd_folder: Path) -> None:
    assert step(surrounded, "surrounded", 3) == 3
    if runtime == "torchserve":
        status, answer = post(surrounded, {"get_model": {}})
        assert status == 200, answer
        assert list(odd_folder.glob("dnc-serve-*/config.properties"))
    for process in surrounded.descendants():
        inherited = process.environ()
        assert not {name for name in inherited if name in HOSTILE and inherited[name] == HOSTILE[name]} - {
            "http_proxy", "https_proxy", "grpc_proxy",  # for a collector of traces that is elsewhere
        }  # fmt: skip
        assert inherited["PYTHONPATH"].startswith("/") or process.name() == "java"


def test_what_computing_needs_does(runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    wanted = {"OMP_NUM_THREADS": "1", "MKL_CBWR": "AVX2", "CUDA_VISIBLE_DEVICES": "", "LD_LIBRARY_PATH": "/nonexistent"}
    wanted |= {"MALLOC_ARENA_MAX": "2", "NUMBA_NUM_THREADS": "1", "HIP_VISIBLE_DEVICES": "0", "HOME": str(tmp_path)}
    with running(small_artifact, tmp_path, "--runtime", runtime, env=wanted) as server:
        assert wanted.items() <= server.worker().environ().items()


def test_two_servers_need_no_flags_but_their_own_ports(runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    """As `dnc serve --port 0 --metrics-port 0` beside `make serve`: TorchServe's ports are nobody's business."""
    command = [sys.executable, "-m", "dnc_serve.client.cli", "serve", "--port", "0", "--metrics-port", "0"]
    held = [socket.create_server(("127.0.0.1", port)) for port in (8080, 7070) if _free(port)]
    processes = []
    try:
        for name in ("one", "other"):
            flags = ["--runtime", runtime, "--model", str(small_artifact), "--state-dir", str(tmp_path / name)]
            processes.append(subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True))
        for process in processes:
            assert process.stdout is not None
            ready = process.stdout.readline()
            assert ready.startswith("ready grpc=127.0.0.1:"), ready
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        for each in held:
            each.close()


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_start_says_what_it_waits_for(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnc_serve.handler.runtime.progress.TELL_EVERY_S", 0.01)
    monkeypatch.setattr("dnc_serve.handler.runtime.progress.LONG_S", -1.0)
    with Progress() as progress:
        progress.awaits("the moon")
        wait_until(lambda: "waiting for the moon" in caplog.text, "it is told")
    assert "still starting, after " in caplog.text


def test_a_worker_that_is_killed_while_it_loads_is_told_at_once(
    runtime: str, small_artifact: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        serve_command(small_artifact, tmp_path / "state", "--runtime", runtime),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )

    def killed() -> bool:
        assert process.poll() is None
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("libtorch_cpu" in each.path for each in child.memory_maps()):
                    child.kill()
                    return True
        return False

    wait_until(killed, "the worker loads torch")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (1, "")
    assert stderr.strip().splitlines()[-1].startswith("dnc serve: "), stderr
    assert not list(tmp_path.glob("dnc-*"))


def test_a_demo_has_settings_of_its_own(tmp_path: Path, small_artifact: Path) -> None:
    """Neither those of the environment nor of a dnc.toml, which are somebody's server's."""
    (tmp_path / "dnc.toml").write_text("slots = 0\n")
    with tempfile.TemporaryDirectory() as short:  # sockets lie in it, whose paths can't be long
        environment = {**os.environ, "DNC_HOST": "0.0.0.0", "DNC_STORE": "redis://nowhere", "TMPDIR": short}
        done = subprocess.run(
            [sys.executable, "-m", "dnc_serve.client.cli", "demo", "--length", "3"],
            capture_output=True, text=True, timeout=200, check=False, env=environment, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wrong bits: 0 of 24" in done.stdout


def test_a_client_of_a_server_at_ipv6(runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    with running(small_artifact, tmp_path, "--runtime", runtime, "--host", "[::1]") as server:
        assert server.grpc.startswith("[::1]:")
        assert server.addresses["metrics"].startswith("[::1]:")
        with Client(server.grpc) as client:
            assert client.model().input_size == 5
        for command in (["health", "--target", server.grpc], ["doctor", "--serving", server.grpc]):
            asked = [sys.executable, "-m", "dnc_serve.client.cli", *command]
            assert subprocess.run(asked, capture_output=True, timeout=60, check=True).stdout.lower() == b"serving\n"


def test_torchserve_finds_other_ports_if_its_own_were_taken_while_it_was_down(
    small_artifact: Path, tmp_path: Path
) -> None:
    with running(small_artifact, tmp_path) as server:
        http = int(server.addresses["http"].rpartition(":")[2])
        assert step(server, "moved", 3) == 3
        server.java().kill()
        with _taken(http):
            wait_until(lambda: "TorchServe's endpoints are elsewhere from now on" in server.log, "it moves")
            wait_until(lambda: "a worker serves again" in server.log, "another TorchServe is ready")
        assert step(server, "moved", 1) == 4


@contextlib.contextmanager
def _taken(port: int) -> Iterator[None]:
    """The port, as soon as it is free."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def bound() -> bool:
            with contextlib.suppress(OSError):
                other.bind(("127.0.0.1", port))
                return True
            return False

        wait_until(bound, f"{port} is free")
        other.listen()
        yield
