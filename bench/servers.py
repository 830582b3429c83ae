"""Real servers to measure, each on free ports, and processes of their own to measure them from."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import ProxyHandler, build_opener

import psutil
from prometheus_client.parser import text_string_to_metric_families

from dnc_serve.client.cli.child_server import STOP_TIMEOUT_S, ChildServer, running
from dnc_serve.client.cli.load import Server
from dnc_serve.handler.torchserve.artifact import resolve_artifact

MODEL = "copy"
ROOT = Path(__file__).parent.parent
WORKER_MARK = "model_service_worker"  # in the command line of TorchServe's workers
# Which settings are ports may differ from one version to the next: each makes its command by itself.
COMMAND = """
import json, sys
from pathlib import Path
from dnc_serve.client.cli.child_server import serve_command
print(json.dumps(serve_command(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])))
"""

Result = TypeVar("Result")
Metrics = Mapping[tuple[str, str], float]


class Served:
    """A `dnc serve` that serves. `endpoint` is for loads by streams, `torchserve` for calls through TorchServe."""

    def __init__(self, server: ChildServer, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._process = psutil.Process(server.process.pid)
        tree = self._tree()
        self.worker = next(each for each in tree if WORKER_MARK in " ".join(each.cmdline()))
        self.endpoint = Server(server.addresses["grpc"], pids=(self.worker.pid,))
        self.torchserve = Server(server.addresses["torchserve-grpc"], pids=tuple(each.pid for each in tree))
        self._metrics = server.addresses["metrics"]

    def _tree(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def artifact(self, model: str, nr_cells: int | None = None) -> str:
        """The folder of the artifact that it serves, as it found it."""
        return str(resolve_artifact(model, nr_cells, self.state_dir / "artifacts", self.state_dir / "unpacked"))

    def metrics(self) -> Metrics:
        """The present value of each sample, by its name and its bucket (`le`), other labels summed."""
        with build_opener(ProxyHandler({})).open(f"http://{self._metrics}/metrics", timeout=30) as response:
            text = response.read().decode()
        values: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, sample.labels.get("le", ""))
                values[key] = values.get(key, 0.0) + sample.value
        return values

    def kill(self) -> None:
        """Ends the whole tree at once, as a power cut would."""
        tree = self._tree()
        for process in tree:
            process.kill()
        psutil.wait_procs(tree, timeout=STOP_TIMEOUT_S)


@contextmanager
def served(model: str, *flags: str, python: str = sys.executable, state_dir: Path | None = None) -> Iterator[Served]:
    """Starts the server of an environment and stops it at the end. Its state vanishes with it unless a folder is given.

    Raises ServerFailed.
    """
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as temporary:
        folder = state_dir or Path(temporary) / "state"
        asked = [python, "-c", COMMAND, model, str(folder), "--log-level", "error", *flags]
        command = json.loads(subprocess.run(asked, cwd="/", check=True, stdout=subprocess.PIPE).stdout)
        with running(command) as server:
            yield Served(server, folder)


@contextmanager
def echo(input_size: int) -> Iterator[Server]:
    """The floor of the transport, for messages with inputs of this size."""
    command = [sys.executable, "-m", "bench.echo"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield Server(process.stdout.readline().strip(), pids=(process.pid,), echo_of=input_size)
        finally:
            process.stdin.close()


class Aside:
    """A process that does one thing after the other, and shares no interpreter with what it measures."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def run(self, work: Callable[..., Result], *args: Any) -> Result:
        """What `work` returns there; raises what it raises."""
        return self.start(work, *args).result()

    def start(self, work: Callable[..., Result], *args: Any) -> "Future[Result]":
        """The same, not waited for."""
        return self._executor.submit(work, *args)


@contextmanager
def aside() -> Iterator[Aside]:
    """A fresh process, which ends with the block."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield Aside(executor)


def grown(before: Metrics, after: Metrics, name: str) -> float:
    """By how much a sample grew between two looks."""
    return after.get((name, ""), 0.0) - before.get((name, ""), 0.0)


def mean(before: Metrics, after: Metrics, name: str) -> float:
    """The mean of what a histogram counted between two looks."""
    return grown(before, after, f"{name}_sum") / grown(before, after, f"{name}_count")


def quantile(before: Metrics, after: Metrics, name: str, q: float) -> float:
    """A quantile of what a histogram counted between two looks, in seconds, as Prometheus has it.

    Raises ValueError if it counted nothing.
    """
    edges = sorted(
        (float(le), count - before.get((metric, le), 0.0))
        for (metric, le), count in after.items()
        if metric == f"{name}_bucket"
    )
    total = edges[-1][1] if edges else 0.0
    if not total:
        raise ValueError(f"{name} counted nothing")
    lower, below = 0.0, 0.0
    for edge, count in edges:
        if count >= q * total:
            within = (q * total - below) / max(count - below, 1e-9)
            return lower if edge == float("inf") else lower + (edge - lower) * within
        lower, below = edge, count
    return lower
