"""What a start is made of: ports, folders, files, causes, and the line to the worker."""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from dnc_serve.handler.config import PORTS, ServeConfig
from dnc_serve.handler.runtime import parent
from dnc_serve.handler.runtime.artifact import ModelError, bundled_models, resolve_artifact
from dnc_serve.handler.runtime.causes import first_cause
from dnc_serve.handler.runtime.control import (
    ControlLine,
    ControlServer,
    WorkerDrained,
    WorkerFailed,
    WorkerGone,
    WorkerReady,
    WorkerStarted,
)
from dnc_serve.handler.runtime.ports import AddressUnusable, check_ports, with_free_ports
from dnc_serve.handler.runtime.run_folder import run_folder
from dnc_serve.model.artifact import load_artifact
from dnc_serve.model.weights import WEIGHTS_FILE
from tests.waiting import PATIENCE_S, wait_until

ZEROS = dict.fromkeys(PORTS, 0)


# Ports.


def test_free_ports_differ_and_chosen_ones_stay() -> None:
    config = with_free_ports(ServeConfig(**{**ZEROS, "port": 1234}), PORTS)
    assert config.port == 1234
    assert len({getattr(config, name) for name in PORTS}) == len(PORTS)


def test_a_taken_port_names_its_setting() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AddressUnusable, match=rf"already at {port} \(torchserve_grpc_port\); .* with "):
            check_ports(ServeConfig(**{**ZEROS, "torchserve_grpc_port": port}))
    check_ports(ServeConfig(**{**ZEROS, "torchserve_grpc_port": port}))


def test_all_taken_ports_are_told_at_once_with_the_remedy() -> None:
    with socket.socket() as one, socket.socket() as other:
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
            taken.listen()
        ports = {"port": one.getsockname()[1], "metrics_port": other.getsockname()[1]}
        with pytest.raises(AddressUnusable) as caught:
            check_ports(ServeConfig(**{**ZEROS, **ports}))
    assert str(caught.value) == (
        f"something listens already at {ports['port']} (port), {ports['metrics_port']} (metrics_port); end it, or take "
        "free ports with --port 0 --metrics-port 0; `dnc doctor` checks them all"
    )


def test_a_host_of_another_machine_is_refused() -> None:
    with pytest.raises(AddressUnusable, match=r"^host is '192\.0\.2\.1'; expected an address of this machine"):
        check_ports(ServeConfig(**ZEROS, host="192.0.2.1", insecure=True))


# The run folder.


def test_the_run_folder_is_private_short_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with run_folder() as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with run_folder() as folder:
        assert len(str(folder / ".ts.sock.65535")) <= 107


def test_only_folders_of_dead_servers_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = tmp_path / "dnc-serve-dead"
    dead.mkdir()
    (dead / "lock").touch()
    with run_folder() as first, run_folder() as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])


# The model.


def test_a_run_is_exported_once_and_with_other_cells(artifact_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "lr=1,size=2"
    run.mkdir()
    for name in (WEIGHTS_FILE, "config.json"):
        (run / name).write_bytes((artifact_folder / name).read_bytes())
    cache = tmp_path / "cache"
    first = resolve_artifact(str(run), None, cache, tmp_path)
    made = (first / "model.pt").stat().st_mtime_ns
    assert resolve_artifact(str(run), None, cache, tmp_path) == first
    assert (first / "model.pt").stat().st_mtime_ns == made
    larger = resolve_artifact(str(run), 33, cache, tmp_path)
    assert load_artifact(larger).config.nr_cells == 33
    assert sorted(path.name for path in cache.iterdir()) == sorted([first.name, larger.name])


def test_models_that_are_none(artifact_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model is 'none'; expected a bundled model"):
        resolve_artifact("none", None, tmp_path, tmp_path)
    with pytest.raises(ModelError, match="exported already"):
        resolve_artifact(str(artifact_folder), 9, tmp_path, tmp_path)
    (tmp_path / "text.mar").write_text("no archive")
    with pytest.raises(ModelError, match=r"text\.mar isn't a \.mar"):
        resolve_artifact(str(tmp_path / "text.mar"), None, tmp_path, tmp_path)
    with zipfile.ZipFile(tmp_path / "other.mar", "w") as archive:
        archive.writestr("model.py", "")
    with pytest.raises(ModelError, match=r"other\.mar holds no artifact"):
        resolve_artifact(str(tmp_path / "other.mar"), None, tmp_path, tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / WEIGHTS_FILE).write_bytes(b"damaged")
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="can't be exported"):
        resolve_artifact(str(tmp_path / "run"), None, tmp_path / "cache", tmp_path)
    assert not list((tmp_path / "cache").iterdir())


def test_the_bundled_copy_model_is_found() -> None:
    assert "copy" in bundled_models()


# Causes, from lines as TorchServe 0.12 printed them.


def printed(logger: str, *messages: str, level: str = "debug") -> list[dict[str, Any]]:
    return [{"level": level, "logger": logger, "message": message} for message in messages]


def test_the_first_exception_of_the_worker_is_the_cause() -> None:
    lines = [
        *printed("MODEL_LOG", "Backend worker process died.", "Traceback (most recent call last):"),
        *printed("MODEL_LOG", '  File "ts/model_loader.py", line 108, in load', "    importlib.import_module(name)"),
        *printed("MODEL_LOG", "ModuleNotFoundError: No module named 'numpi'"),
        *printed("MODEL_LOG", "During handling of the above exception, another exception occurred:"),
        *printed("MODEL_LOG", "ModuleNotFoundError: No module named 'ts.torch_handler.dnc_serve_entry'"),
        *printed("org.pytorch.serve.wlm.WorkerThread", "Backend worker error", level="error"),
    ]
    assert first_cause(lines) == "ModuleNotFoundError: No module named 'numpi'"


def test_what_ended_java_is_the_cause() -> None:
    lines = [
        *printed("java", "WARNING: A terminally deprecated method in sun.misc.Unsafe has been called"),
        *printed("java", "java.io.IOException: Failed to bind to address: http://127.0.0.1:8080"),
        *printed("java", "\tat org.pytorch.serve.ModelServer.main(ModelServer.java:105)"),
        *printed("MODEL_LOG", "ConnectionResetError: [Errno 104]"),
    ]
    assert first_cause(lines) == "java.io.IOException: Failed to bind to address: http://127.0.0.1:8080"


def test_an_exception_that_the_worker_logged_as_json() -> None:
    lines = [{"level": "error", "logger": "root", "message": "x", "exception": "Traceback\n  y\nValueError: z"}]
    assert first_cause(lines) == "ValueError: z"


def test_without_an_exception_the_last_error_is_the_cause() -> None:
    lines = [
        {"level": "error", "logger": "org.pytorch.serve.X", "message": "no store", "exception": " java.Foo\n\tat x"},
        *printed("java", "bye"),
    ]
    assert first_cause(lines) == "no store java.Foo"
    assert first_cause(printed("java", "bye")) == "bye"
    assert first_cause([]) == ""


# The line to the worker.


def test_both_ends_hear_each_other_and_notice_the_end(tmp_path: Path) -> None:
    events: queue.Queue[Any] = queue.Queue()
    orders: queue.Queue[Any] = queue.Queue()
    server = ControlServer(tmp_path, events.put)
    assert server.drain(1.0) is False
    line = ControlLine(tmp_path)
    line.listen(orders.put, lambda: orders.put("gone"))
    line.failed("because")
    line.ready("a:1", "b:2")
    assert events.get(timeout=PATIENCE_S) == WorkerStarted(1)
    assert events.get(timeout=PATIENCE_S) == WorkerFailed("because")
    assert events.get(timeout=PATIENCE_S) == WorkerReady(os.getpid(), "a:1", "b:2")
    assert server.drain(1.5) is True
    assert orders.get(timeout=PATIENCE_S) == 1.5
    line.drained()
    assert events.get(timeout=PATIENCE_S) == WorkerDrained()
    line._socket.shutdown(socket.SHUT_RDWR)
    assert events.get(timeout=PATIENCE_S) == WorkerGone(1)
    assert orders.get(timeout=PATIENCE_S) == "gone"
    server.close()


# The parent.


def test_a_bound_process_ends_with_the_one_above_it() -> None:
    """In between, a shell that is killed with a signal that it can't handle."""
    script = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, {parent.__file__!r}, str(os.getpid()), sys.executable, "-c",
                          "import time; print('up', flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""
    middle = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert middle.stdout is not None
    child = int(middle.stdout.readline())
    middle.kill()
    middle.wait()
    middle.stdout.close()
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(child)
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, "it ends")
