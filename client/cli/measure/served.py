"""A real `dnc serve` to measure: TorchServe, its worker and its doors, on free ports and in a folder of its own."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psutil

from dnc_serve.client.cli.child_server import STOP_TIMEOUT_S, ChildServer, child_server

WORKER_MARK = "model_service_worker"  # in the command line of TorchServe's workers


class Served:
    """A server that serves."""

    def __init__(self, server: ChildServer, state_dir: Path) -> None:
        self.process = server.process
        self.state_dir = state_dir
        self.grpc = server.addresses["grpc"]
        self.torchserve_grpc = server.addresses["torchserve-grpc"]
        self._metrics = server.addresses["metrics"]

    def worker(self) -> psutil.Process:
        """The process that owns the sessions."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if WORKER_MARK in " ".join(child.cmdline()))

    def artifact(self, model: str, nr_cells: int | None = None) -> str:
        """The folder of the artifact that it serves, as it found it; for `bare`."""
        from dnc_serve.handler.torchserve.artifact import resolve_artifact

        return str(resolve_artifact(model, nr_cells, self.state_dir / "artifacts", self.state_dir / "unpacked"))

    def metrics(self) -> dict[tuple[str, str], float]:
        """The present value of each sample, by its name and its bucket (`le`), other labels summed."""
        from prometheus_client.parser import text_string_to_metric_families

        with urlopen(f"http://{self._metrics}/metrics", timeout=30) as response:
            text = response.read().decode()
        values: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, sample.labels.get("le", ""))
                values[key] = values.get(key, 0.0) + sample.value
        return values

    def kill(self) -> None:
        """Ends the whole tree at once, as a power cut would."""
        tree = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in tree:
            process.kill()
        psutil.wait_procs(tree, timeout=STOP_TIMEOUT_S)


@contextmanager
def served(model: str, *flags: str, code: str = "auto", state_dir: Path | None = None) -> Iterator[Served]:
    """Starts a server and stops it at the end. Its state vanishes with it unless a folder is given.

    `code`: what steps the model, as the setting says. Raises ServerFailed.
    """
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as temporary:
        folder = state_dir or Path(temporary) / "state"
        with child_server(model, folder, "--log-level", "error", "--code", code, *flags) as server:
            yield Served(server, folder)


def quantile(
    before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float], name: str, q: float
) -> float:
    """A quantile of what a histogram of the server counted between two looks, in seconds, as Prometheus has it.

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
