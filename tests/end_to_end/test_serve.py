"""`dnc serve` as a process: what it prints, how it fails, how it ends, and what it survives."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from dnc_serve.client import Client
from dnc_serve.client.cli.child_server import serve_command
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.probe import health
from tests.end_to_end.servers import Server, running
from tests.folders import temp_folder
from tests.handler.harness import INPUT_SIZE, OUTPUT_SIZE
from tests.waiting import PATIENCE_S, freeze, shown_until, wait_until


def step(server: Server, session_id: str, timesteps: int = 1) -> int:
    """Steps a session over the streaming door; its position afterwards."""
    with Client(server.grpc) as client, client.session(session_id) as session:
        outputs = session.step([[float(i % 2)] * INPUT_SIZE for i in range(timesteps)])
        assert outputs.shape == (timesteps, OUTPUT_SIZE)
        return session.position


def serves(server: Server) -> bool:
    return health(server.grpc, ServeConfig(), timeout_s=PATIENCE_S) == "SERVING"


def failed_start(model: Path | str, tmp_path: Path, *flags: str, **env: str) -> tuple[int, str, str]:
    """Exit code, standard output, and the last line on standard error."""
    done = subprocess.run(
        serve_command(model, tmp_path / "state", *flags),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(temp_folder(tmp_path)), **env},
    )
    assert not list(temp_folder(tmp_path).iterdir())
    return done.returncode, done.stdout, done.stderr.strip().splitlines()[-1]


def test_ready_line_names_addresses_that_answer(server: Server, runtime: str) -> None:
    torchserve_s = ["http", "torchserve", "management"] if runtime == "torchserve" else []
    assert list(server.addresses) == ["grpc", "metrics", *torchserve_s]
    for address in server.addresses.values():
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
    assert serves(server)


def test_a_session_goes_from_one_code_to_the_other(small_artifact: Path, tmp_path: Path) -> None:
    positions = []
    for code, artifact in (("auto", "row-kernel"), ("torchscript", "torchscript"), ("kernel", "row-kernel")):
        with running(small_artifact, tmp_path, "--runtime", "plain", "--code", code) as server:
            with Client(server.grpc) as client:
                assert client.model().artifact == artifact
            positions.append(step(server, "s", 5))
    assert positions == [5, 10, 15]


def test_only_the_worker_loads_torch(server: Server) -> None:
    assert any("libtorch" in mapped.path for mapped in server.worker().memory_maps())
    assert not any("libtorch" in mapped.path for mapped in psutil.Process(server.process.pid).memory_maps())


def test_doctor_asks_a_server_for_its_health(server: Server) -> None:
    command = [sys.executable, "-m", "dnc_serve.client.cli", "doctor", "--serving", server.grpc]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "SERVING\n"


def test_log_is_json_lines_and_quiet_per_call(server: Server) -> None:
    step(server, "quiet")
    before = server.log
    for _ in range(20):
        step(server, "quiet")
    assert server.log == before
    for line in before.splitlines():
        assert {"time", "level", "logger", "message"} <= set(json.loads(line))


def test_on_a_terminal_it_speaks_to_people(small_artifact: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = serve_command(small_artifact, tmp_path / "state", "--runtime", "plain")
    environment = {**os.environ, "TMPDIR": str(temp_folder(tmp_path)), "NO_COLOR": "1"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = shown_until(ours, b"dnc watch --target").decode()
        process.send_signal(signal.SIGTERM)
        shown += shown_until(ours, b"stopped\r\n").decode()
        os.close(ours)
    lines = shown.splitlines()
    assert re.fullmatch(rf"\d\d:\d\d:\d\d info  starting  model={small_artifact}  state_dir=.*", lines[0])
    [ready] = [number for number, line in enumerate(lines) if line.startswith("ready grpc=")]
    [grpc] = re.findall(r"grpc=(\S+)", lines[ready])
    assert lines[ready + 1] == f'python: Client("{grpc}").session("my-session").step(inputs)'
    assert lines[ready + 2] == f"look:   dnc watch --target {grpc}"


def test_two_servers_side_by_side(server: Server, runtime: str, small_run: Path, tmp_path: Path) -> None:
    with running(small_run, tmp_path, "--runtime", runtime, env={"DNC_SLOTZ": "9"}) as other:
        assert step(server, "beside", 2) == 2
        assert step(other, "beside", 3) == 3
        assert not set(server.addresses.values()) & set(other.addresses.values())
        # A misspelt variable is a line of the log.
        assert [line["message"] for line in map(json.loads, other.log.splitlines()) if line["level"] == "warning"] == [
            "DNC_SLOTZ in the environment is no setting; did you mean DNC_SLOTS?"
        ]


def test_a_signal_stops_everything_and_sessions_survive(runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    for number, position in ((signal.SIGTERM, 3), (signal.SIGINT, 6)):
        with running(small_artifact, tmp_path, "--runtime", runtime) as server:
            assert step(server, "kept", 3) == position
            processes = server.descendants()
            assert ("java" in {process.name() for process in processes}) == (runtime == "torchserve")
            server.process.send_signal(number)
            assert server.process.wait() == 0
        assert not [process for process in processes if process.is_running()]
        assert list(temp_folder(tmp_path).iterdir()) == []


def test_a_stop_during_the_start_leaves_nothing(runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        serve_command(small_artifact, tmp_path / "state", "--runtime", runtime),
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temp_folder(tmp_path))},
    )
    children: list[psutil.Process] = []

    def started() -> bool:
        children[:] = psutil.Process(process.pid).children(recursive=True)
        return bool(children)

    wait_until(started, "the child is started")
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate()
    assert (process.returncode, stdout) == (0, b"")
    assert not [child for child in children if child.is_running()]
    assert not list(temp_folder(tmp_path).iterdir())


def test_worker_and_java_are_started_again_where_clients_know_them(small_artifact: Path, tmp_path: Path) -> None:
    with running(small_artifact, tmp_path) as server:

        def starts() -> int:
            return server.log.count("a worker serves again")

        assert step(server, "survivor", 3) == 3
        server.worker().kill()
        wait_until(lambda: starts() == 1, "another worker is ready")
        assert serves(server)
        assert step(server, "survivor", 1) == 4

        worker = server.worker()
        server.java().kill()
        wait_until(lambda: not worker.is_running(), "the worker ends with Java")
        wait_until(lambda: starts() == 2, "another TorchServe is ready")
        assert step(server, "survivor", 1) == 5
        assert server.stop() == 0


def test_http_and_a_socket_come_back_where_clients_know_them(
    runtime: str, small_artifact: Path, tmp_path: Path
) -> None:
    place = temp_folder(tmp_path) / "endpoint"
    flags = ("--http-port", "0", "--listen", f"unix:{place}")
    with running(small_artifact, tmp_path, "--runtime", runtime, *flags) as server:
        assert server.addresses["socket"] == f"unix:{place}"

        def answers() -> bool:
            connection = HTTPConnection(server.addresses["inference"])
            try:
                connection.request("GET", "/v2/health/ready")
                if connection.getresponse().status != 200:
                    return False
            except OSError:
                return False
            with Client(f"unix:{place}") as client, client.session("at-the-socket") as session:
                session.step([[1.0] * INPUT_SIZE])
                return session.position == session.info().position

        assert answers()
        worker = server.worker()
        worker.kill()
        wait_until(lambda: not worker.is_running(), "the worker ends")
        wait_until(answers, "it answers again")


def test_nothing_outlives_a_killed_dnc_serve(runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    with running(small_artifact, tmp_path, "--runtime", runtime) as server:
        processes = server.descendants()
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(process.is_running() for process in processes), "all processes end")
    with running(
        small_artifact, tmp_path, "--runtime", runtime
    ):  # the state folder is free again, and the old run folder is swept away
        assert len(list(temp_folder(tmp_path).glob("dnc-serve-*"))) == 1


def test_a_second_signal_kills(runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    with running(small_artifact, tmp_path, "--runtime", runtime, "--grace-s", "10000") as server:
        processes = server.descendants()
        freeze(server.worker().pid)  # it won't drain
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: '"stopping"' in server.log, "the stop begins")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 1
    assert not [process for process in processes if process.is_running()]


def test_the_grace_time_ends_a_worker_that_hangs(runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    with running(small_artifact, tmp_path, "--runtime", runtime, "--grace-s", "4") as server:
        processes = server.descendants()
        freeze(server.worker().pid)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 1
    assert not [process for process in processes if process.is_running()]


def test_held_state_folder(server: Server, runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    flags = ("--runtime", runtime, "--state-dir", str(server.folder / "state"))
    code, stdout, cause = failed_start(small_artifact, tmp_path, *flags)
    assert (code, stdout) == (1, "")
    assert "is in use by the server with process id" in cause


@pytest.mark.parametrize("runtime", ["torchserve"], indirect=True)
def test_busy_ports(server: Server, small_artifact: Path, tmp_path: Path) -> None:
    flags = {"--port": "grpc", "--metrics-port": "metrics", "--torchserve-http-port": "http"}
    busy = [text for flag, name in flags.items() for text in (flag, server.addresses[name].rpartition(":")[2])]
    code, stdout, cause = failed_start(small_artifact, tmp_path, *busy)
    assert (code, stdout) == (1, "")
    assert cause.startswith(f"dnc serve: something listens already at {busy[1]} (port), {busy[3]} (metrics_port), ")
    assert "--port 0 --metrics-port 0 --torchserve-http-port 0" in cause


def test_wrong_artifact(runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for path in small_artifact.iterdir():
        (wrong / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((wrong / "manifest.json").read_text())
    (wrong / "manifest.json").write_text(json.dumps({**manifest, "digest": "0" * 64}))
    code, _, cause = failed_start(wrong, tmp_path, "--runtime", runtime)
    assert code == 1
    assert "names the digest 0000" in cause


@pytest.mark.parametrize("module", ["torch", "grpc_health"])  # before and after the handler's first word
def test_failing_import(module: str, runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / module
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text('raise ImportError("libnothing.so: cannot open shared object file")\n')
    code, _, cause = failed_start(small_artifact, tmp_path, "--runtime", runtime, PYTHONPATH=str(broken.parent))
    assert (code, cause) == (1, "dnc serve: ImportError: libnothing.so: cannot open shared object file")


def test_unknown_model(tmp_path: Path) -> None:
    code, _, cause = failed_start("nowhere", tmp_path)
    assert code == 1
    assert cause.startswith("dnc serve: model is 'nowhere'; expected a bundled model (")


def test_wrong_setting(tmp_path: Path) -> None:
    code, _, cause = failed_start("copy", tmp_path, "--slots", "0")
    assert (code, cause) == (2, "dnc serve: slots is '0' (--slots); expected at least 1")


def test_unprotected_door_is_refused(tmp_path: Path) -> None:
    code, _, cause = failed_start("copy", tmp_path, "--host", "0.0.0.0")
    assert code == 2
    assert "insecure" in cause


def test_misspelt_variables_are_told(tmp_path: Path) -> None:
    done = subprocess.run(
        serve_command("copy", tmp_path, "--show-config"),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "DNC_SLOTZ": "9"},
    )
    assert done.stderr == "dnc serve: DNC_SLOTZ in the environment is no setting; did you mean DNC_SLOTS?\n"
    assert "slots = 256" in done.stdout


def test_show_config(tmp_path: Path) -> None:
    file = tmp_path / "dnc.toml"
    file.write_text('slots = 8\nhost_bytes = "1MiB"\n')
    shown = subprocess.run(
        serve_command("copy", tmp_path, "--config", str(file), "--show-config"),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "DNC_SLOTS": "9"},
    ).stdout
    lines = {line.split(" = ")[0]: line for line in shown.splitlines()}
    assert lines["slots"].split("#") == [f"{'slots = 9':<60} ", " DNC_SLOTS"]
    assert lines["host_bytes"].startswith("host_bytes = 1048576 ")
    assert lines["host_bytes"].endswith(f"# {file}")
    assert lines["model"].endswith("# --model")
    assert lines["grace_s"].endswith("# default")
