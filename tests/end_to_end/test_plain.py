"""`dnc serve --runtime plain`: one process above the worker, and what becomes of sessions when either ends."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from dnc_serve.client.cli.child_server import serve_command
from dnc_serve.handler.runtime.supervisor import LONGEST_RESTART_DELAY_S, restart_delay_s
from tests.end_to_end.servers import Server, running
from tests.end_to_end.test_serve import serves, step
from tests.folders import temp_folder
from tests.waiting import wait_until

PLAIN = ("--runtime", "plain")


def test_the_worker_is_all_that_runs_below(small_artifact: Path, tmp_path: Path) -> None:
    with running(small_artifact, tmp_path, *PLAIN) as server:
        assert server.descendants() == [server.worker()]
        listening = {
            connection.laddr.port
            for process in (psutil.Process(server.process.pid), server.worker())
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {int(address.rpartition(":")[2]) for address in server.addresses.values()}


def test_a_worker_that_ends_is_started_again_with_its_sessions(small_artifact: Path, tmp_path: Path) -> None:
    with running(small_artifact, tmp_path, *PLAIN) as server:
        assert step(server, "survivor", 3) == 3
        for starts, number in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV), start=1):
            server.worker().send_signal(number)
            wait_until(lambda: server.log.count("a worker serves again") == starts, "another worker is ready")  # noqa: B023
            assert serves(server)
            assert step(server, "survivor", 1) == 3 + starts
        assert f"the worker ended (killed by signal {signal.SIGKILL}); it is started again in 0.5 s" in server.log
        assert "the worker ended (with exit code 0); it is started again in 1.0 s" in server.log  # it has drained
        assert server.stop() == 0


def test_sessions_go_on_under_the_other_runtime(small_artifact: Path, tmp_path: Path) -> None:
    for runtime, position in (("torchserve", 2), ("plain", 4), ("torchserve", 6)):
        with running(small_artifact, tmp_path, "--runtime", runtime) as server:
            assert step(server, "wanderer", 2) == position


def test_a_stop_while_the_worker_is_on_its_way_back(small_artifact: Path, tmp_path: Path) -> None:
    with running(small_artifact, tmp_path, *PLAIN) as server:
        server.worker().kill()
        wait_until(lambda: "it is started again in" in server.log, "the end is noticed")
        assert server.stop() == 0
    assert list(temp_folder(tmp_path).iterdir()) == []


def test_a_worker_that_cannot_come_back_is_given_up(small_artifact: Path, tmp_path: Path) -> None:
    """With a lower limit than a day's worth of restarts."""
    limited = (
        "import sys; from dnc_serve.client.cli import main; from dnc_serve.handler.plain.runtime import PlainRuntime\n"
        "PlainRuntime.restarts = 2; sys.exit(main(sys.argv[1:]))"
    )
    artifact = tmp_path / "artifact"
    shutil.copytree(small_artifact, artifact)
    command = [sys.executable, "-c", limited, *serve_command(artifact, tmp_path / "state", *PLAIN)[3:]]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith("ready ")
        server = Server(process, {}, tmp_path)
        (artifact / "manifest.json").unlink()
        server.worker().kill()
        assert process.wait() == 1
    assert server.log.count("a worker could not start again: ") == 2
    assert "the worker ended 3 times in a row, giving up: " in server.log


def test_delays_grow_to_a_bound() -> None:
    delays = [restart_delay_s(restarts) for restarts in range(1, 10_000)]
    assert delays[:4] == [0.5, 1.0, 2.0, 4.0]
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_RESTART_DELAY_S
