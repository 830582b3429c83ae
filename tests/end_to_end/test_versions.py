"""A version of a model is rolled while clients work: no call of theirs fails, and a kill forgets nothing."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.client import Client, ModelUnusable
from dnc_serve.client.arrays import Float32
from tests.end_to_end.servers import Server, running
from tests.handler.harness import LSTM_INPUTS, export_lstm
from tests.waiting import wait_until

SESSIONS = 6


@pytest.fixture(scope="module")
def lstms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [export_lstm(tmp_path_factory.mktemp(f"lstm-{seed}"), seed) for seed in range(3)]


def inputs(seed: int) -> Float32:
    return np.random.default_rng(seed).standard_normal((2, LSTM_INPUTS)).astype(np.float32)


class Load:
    """Clients that step sessions of their own, and begin others, until they are stopped."""

    def __init__(self, server: Server) -> None:
        self._address = server.grpc
        self._stop = threading.Event()
        self.steps = [0] * SESSIONS
        self.versions: set[str] = set()  # of the sessions that were begun
        self.failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(SESSIONS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self.failures == []

    def _work(self, number: int) -> None:
        try:
            with Client(self._address) as client, client.session(f"steady-{number}") as session:
                while not self._stop.is_set():
                    session.step(inputs(number))
                    self.steps[number] += 1
                    assert session.position == 2 * self.steps[number]
                    with client.session() as brief:
                        brief.step(inputs(number))
                        self.versions.add(brief.info().model_version)
                        brief.delete()
        except Exception as exc:
            self.failures.append(exc)

    def goes_on(self) -> None:
        """Returns when each has made some steps more."""
        wanted = [steps + 3 for steps in self.steps]

        def made() -> bool:
            return bool(self.failures) or all(now >= then for now, then in zip(self.steps, wanted, strict=True))

        wait_until(made, "everybody goes on")
        assert self.failures == []


@pytest.fixture(params=[("plain", 2), ("torchserve", 1)], ids=lambda two: "-".join(map(str, two)))
def machine(request: pytest.FixtureRequest, lstms: list[Path], tmp_path: Path) -> Iterator[tuple[Server, int]]:
    runtime, workers = request.param
    with running(f"risk={lstms[0]}", tmp_path, "--runtime", runtime, "--workers", str(workers)) as server:
        yield server, workers


def test_versions_are_rolled_under_load(machine: tuple[Server, int], lstms: list[Path]) -> None:
    server, workers = machine
    with Client(server.grpc, timeout_s=240.0) as client, Load(server) as load:
        client.load_model("risk", str(lstms[1]))
        load.goes_on()
        assert client.session("by-2").info().model_version == "2"
        for number in range(SESSIONS):  # while they are stepped by others
            assert client.session(f"steady-{number}").migrate()
        load.goes_on()
        command = [sys.executable, "-m", "dnc_serve.client.cli", "load", "risk", str(lstms[2]), "--target", server.grpc]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.startswith("model risk version 3, digest ")
        load.goes_on()
        assert client.unload_model("risk", "2", carry_over=True) >= SESSIONS
        load.goes_on()
        with pytest.raises(ModelUnusable):
            client.load_model("risk", "no-such-folder")
        load.goes_on()
        assert {"1", "2", "3"} >= load.versions and "3" in load.versions
        # Each worker knows what was loaded when it comes back.
        killed = [server.worker_of(number) for number in range(workers)] if workers > 1 else [server.worker()]
        for process in killed:
            process.kill()
        wait_until(lambda: server.log.count("a worker serves again") >= workers, "the workers are back")
        load.goes_on()
        assert [model.version for model in client.models()] == ["3", "1"]
        assert {client.session(f"steady-{number}").info().model_version for number in range(SESSIONS)} == {"3"}
