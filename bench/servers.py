"""Real servers to measure, on free ports: ours, of any version, and an empty echo."""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil
from prometheus_client.parser import text_string_to_metric_families

from dnc_serve.client import Client
from dnc_serve.client.cli.child_server import STOP_TIMEOUT_S, ChildServer, running
from dnc_serve.client.cli.load import Server
from dnc_serve.handler.runtime.artifact import resolve_artifact

MODEL = "copy"
ROOT = Path(__file__).parent.parent
# In the command line of a worker that TorchServe has started, or `dnc serve` itself.
WORKER = re.compile(r"model_service_worker|handler\.plain\.worker")
# Which settings are ports may differ from one version to the next: each makes its command by itself.
COMMAND = """
import json, sys
from pathlib import Path
from dnc_serve.client.cli.child_server import serve_command
print(json.dumps(serve_command(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])))
"""

Metrics = Mapping[tuple[str, str], float]


class Served:
    """A `dnc serve` that serves. `endpoint` is for loads by streams, `torchserve` for calls through TorchServe."""

    def __init__(self, server: ChildServer, model: str, nr_cells: int | None, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.root = psutil.Process(server.process.pid)
        workers = [each for each in tree(self.root) if WORKER.search(" ".join(each.cmdline()))]
        self.worker = workers[0]
        with Client(server.addresses["grpc"]) as client:
            self.model = client.model()
        self.endpoint = Server(
            server.addresses["grpc"], self.model.input_size, pids=tuple(each.pid for each in workers)
        )
        pids = tuple(each.pid for each in tree(self.root))
        self.torchserve = replace(self.endpoint, address=server.addresses.get("torchserve", ""), pids=pids)
        # As it found it.
        self.artifact = str(resolve_artifact(model, nr_cells, state_dir / "artifacts", state_dir / "unpacked"))
        self._metrics = server.addresses["metrics"]

    def position(self, prefix: str) -> int:
        """Of all sessions whose names begin so, the sum."""
        with Client(self.endpoint.address) as client:
            return sum(session.position for session in client.sessions(prefix))

    def metrics(self) -> Metrics:
        """The present value of each sample, by its name and its bucket (`le`), other labels summed."""
        with build_opener(ProxyHandler({})).open(f"http://{self._metrics}/metrics", timeout=30) as response:
            text = response.read().decode()
        values: Counter[tuple[str, str]] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name, sample.labels.get("le", "")] += sample.value  # type: ignore[assignment]
        return values

    def kill(self) -> None:
        """Ends the whole tree at once, as a power cut would."""
        everything = tree(self.root)
        for process in everything:
            process.kill()
        psutil.wait_procs(everything, timeout=STOP_TIMEOUT_S)


@contextmanager
def served(
    model: str, *flags: str, nr_cells: int | None = None, python: str = sys.executable, state_dir: Path | None = None
) -> Iterator[Served]:
    """Starts the server of an environment and stops it at the end. Its state vanishes with it unless a folder is given.

    Raises ServerFailed.
    """
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as temporary:
        folder = state_dir or Path(temporary) / "state"
        cells = () if nr_cells is None else ("--nr-cells", str(nr_cells))
        asked = [python, "-c", COMMAND, model, str(folder), "--log-level", "error", *cells, *flags]
        command = json.loads(subprocess.run(asked, cwd="/", check=True, stdout=subprocess.PIPE).stdout)
        with running(command) as server:
            yield Served(server, model, nr_cells, folder)


@contextmanager
def echo(input_size: int) -> Iterator[Server]:
    """The floor of the transport, for messages with inputs of this size."""
    command = [sys.executable, "-m", "bench.echo"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield Server(process.stdout.readline().strip(), input_size, pids=(process.pid,), is_echo=True)
        finally:
            process.stdin.close()


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that stem from it."""
    return [process, *process.children(recursive=True)]


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
    buckets = [(float(le), metric, le) for metric, le in after if metric == f"{name}_bucket"]
    edges = [(edge, after[metric, le] - before.get((metric, le), 0.0)) for edge, metric, le in sorted(buckets)]
    total = edges[-1][1] if edges else 0.0
    if not total:
        raise ValueError(f"{name} counted nothing")
    lower, below = 0.0, 0.0
    for edge, count in edges:
        if count >= q * total and edge != float("inf"):
            return lower + (edge - lower) * (q * total - below) / max(count - below, 1e-9)
        lower, below = (edge, count) if edge != float("inf") else (lower, below)
    return lower
