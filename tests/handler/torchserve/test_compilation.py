"""Compiling before serving: what happens when it can't be done, or isn't wanted any more."""

import logging
import queue
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.torchserve.compilation import compile_model
from dnc_serve.handler.torchserve.events import StopAsked
from tests.waiting import PATIENCE_S, wait_until


def test_without_a_compiler_the_server_starts_and_says_why(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with caplog.at_level(logging.WARNING):
        assert compile_model(artifact_folder, ServeConfig(state_dir=tmp_path), queue.SimpleQueue())
    assert "served uncompiled: compiling takes a C++ compiler" in caplog.text


def test_a_stop_ends_it_with_all_its_processes_and_leaves_nothing(artifact_folder: Path, tmp_path: Path) -> None:
    config, events = ServeConfig(state_dir=tmp_path), queue.SimpleQueue[Any]()
    results: list[bool] = []
    compiling = threading.Thread(target=lambda: results.append(compile_model(artifact_folder, config, events)))
    compiling.start()
    wait_until(lambda: config.compiled_dir.is_dir() and list(config.compiled_dir.iterdir()), "it is under way")
    processes = [child for child in psutil.Process().children(recursive=True) if str(tmp_path) in _command(child)]
    assert processes
    processes += [grandchild for process in processes for grandchild in process.children(recursive=True)]
    events.put(StopAsked())
    compiling.join()
    assert results == [False]
    assert not psutil.wait_procs(processes, timeout=PATIENCE_S)[1]
    assert list(config.compiled_dir.iterdir()) == []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
