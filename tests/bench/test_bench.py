"""`dnc bench` and the serving program on real servers. What they measure isn't judged here: the machine may be busy."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.run import DOCUMENT
from bench.servers import ROOT, echo
from dnc_serve.client import Client
from dnc_serve.client.cli.load import LOADS, Server, Span, stream_load
from tests.handler.door import Door, open_door
from tests.handler.harness import INPUT_SIZE, export_small


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(export_small(tmp_path_factory.mktemp("artifact")), tmp_path_factory.mktemp("state")) as door:
        yield door


def test_the_command_measures_a_server_that_runs_and_leaves_nothing_behind(door: Door) -> None:
    address = door.addresses.grpc
    command = [sys.executable, "-m", "dnc_serve.client.cli", "bench", "--target", address, "--quick", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["device"] == "cpu"
    assert list(report["rows"]) == list(LOADS)
    for row in report["rows"].values():
        assert row["calls"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    with Client(address) as client:
        assert list(client.sessions("bench-")) == []


class OnlyInference(grpc.GenericRpcHandler):
    """Passes the calls of Triton's protocol on, and knows no others."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method
        if not method.startswith("/inference."):
            return None
        if method.endswith("ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(lambda asked, _: self._channel.stream_stream(method)(asked))
        return grpc.unary_unary_rpc_method_handler(lambda asked, _: self._channel.unary_unary(method)(asked))


def test_the_command_measures_a_server_of_tritons_protocol(door: Door) -> None:
    with ThreadPoolExecutor(max_workers=80) as threads:
        other = grpc.server(threads)
        other.add_generic_rpc_handlers((OnlyInference(door.channel),))
        address = f"127.0.0.1:{other.add_insecure_port('127.0.0.1:0')}"
        other.start()
        command = [sys.executable, "-m", "dnc_serve.client.cli", "bench", "--target", address, "--quick", "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        other.stop(None).wait()
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["model"], report["platform"]) == ("copy", "dnc-serve")
    assert list(report["rows"]) == [name for name, load in LOADS.items() if load.way == "lockstep"]
    assert all(row["calls"] > 0 for row in report["rows"].values())
    with Client(door.addresses.grpc) as client:
        assert list(client.sessions()) == []


@pytest.mark.parametrize("name", LOADS)
def test_each_load_steps_every_session_as_often_as_it_was_asked_to(name: str, door: Door) -> None:
    load, prefix = replace(LOADS[name], rounds=3), name.replace(" ", "-").replace(",", "")
    server = Server(door.addresses.grpc, INPUT_SIZE, pids=(os.getpid(),))
    figures = stream_load(server, load, Span(0.0), prefix=prefix + ":")
    assert figures.calls == 3 * load.sessions
    assert figures.server_us > 0
    with Client(server.address) as client:
        positions = [session.position for session in client.sessions(prefix + ":")]
    assert positions == load.sessions * [3 * load.chunk]


def test_an_echo_takes_the_same_loads() -> None:
    with echo(INPUT_SIZE) as floor:
        for load in LOADS.values():
            assert stream_load(floor, replace(load, rounds=2), Span(0.0)).calls == 2 * load.sessions


@pytest.mark.long  # starts two servers and four processes with torch; loads, echo and report are tested by themselves
def test_the_serving_program_writes_its_section(tmp_path: Path) -> None:
    (tmp_path / DOCUMENT).write_text("<!-- measured: serving -->\n<!-- end: serving -->\n")
    command = [sys.executable, "-m", "bench.serving", "--quick", "--docs", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    written = (tmp_path / DOCUMENT).read_text()
    report = json.loads((tmp_path / "performance-serving.json").read_text())
    loads = {(row["server"], row["load"]): row["figures"] for row in report["figures"]["loads"]}
    assert {label for server, label in loads if server == "echo"} == set(LOADS)
    assert {label for server, label in loads if server == "now"} > set(LOADS)
    for (_, label), figures in loads.items():
        assert label in written
        assert figures["server_us"] > 0
    for ratio in report["ratios"]:  # a difference of two measurements may be below nothing in a short run
        assert ratio["value"] > 0 or (" above " in ratio["name"] or " adds " in ratio["name"]), ratio
        assert math.isfinite(ratio["value"])
