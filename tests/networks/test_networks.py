"""Three servers, their store and a client, each on a machine of its own; the wire is slow, lossy, and fails one way."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.folders import memory_folder
from tests.handler.store.conftest import SAFE
from tests.histories.checker import check
from tests.histories.operations import read
from tests.networks.network import Machine, Network, network
from tests.programs import program
from tests.server_process import REPOSITORY, ServerProcess
from tests.waiting import wait_until

LEASE_S = 4.0
SESSIONS = 5
CUT_S = 2.0
DELAY_S, JITTER_S, LOSS = 0.005, 0.002, 0.01


class Server(ServerProcess):
    """On that machine."""

    def __init__(self, machine: Machine, artifact: Path, state_dir: Path, **settings: object) -> None:
        super().__init__(artifact, state_dir, host=machine.address, insecure=True, **settings)
        self.address = f"{machine.address}:{self.address.rpartition(':')[2]}"
        self._command = machine.command(self._command)


class Client:
    """The one that streams, on that machine."""

    def __init__(self, machine: Machine, *arguments: object) -> None:
        command = [sys.executable, "-m", "tests.networks.streams", *map(str, arguments)]
        self._process = subprocess.Popen(
            machine.command(command), cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._says = self._process.stdin, self._process.stdout

    def none_stands_still(self) -> None:
        self._orders.write("\n")
        self._orders.flush()
        assert self._says.readline() == "none stands still\n"

    def end(self) -> list[str]:
        """What it prints last."""
        self._orders.close()
        return self._says.read().splitlines()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._orders, self._says):
            pipe.close()


@contextmanager
def store_on(machine: Machine) -> Iterator[str]:
    """The URL of a Redis on that machine."""
    with memory_folder() as folder:
        settings = SAFE | {"port": "6379", "bind": machine.address, "protected-mode": "no", "dir": str(folder)}
        config, log = folder / "redis.conf", folder / "log"
        config.write_text("".join(f'{name} "{value}"\n' for name, value in settings.items()))
        with log.open("ab") as file:
            command = machine.command([program("redis-server", "valkey-server"), str(config)])
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            ready = "Ready to accept connections"
            wait_until(lambda: ready in log.read_text() or process.poll() is not None, "redis-server listens")
            assert process.poll() is None, log.read_text()
            yield f"redis://{machine.address}:6379/0"
        finally:
            process.kill()
            process.wait()


def disturb(wire: Network, client: Client, at: Machine, store: Machine, servers: list[Machine]) -> None:
    client.none_stands_still()
    for sender, receiver in ((servers[0], store), (store, servers[1])):
        with wire.cut(sender, receiver):
            client.none_stands_still()  # the others take its sessions over
        client.none_stands_still()
    for sender, receiver in ((at, servers[0]), (servers[1], at), (at, servers[2]), (servers[2], at)):
        with wire.cut(sender, receiver):
            time.sleep(CUT_S)  # it keeps its sessions, which wait for it
        client.none_stands_still()


@pytest.mark.long
def test_a_slow_lossy_network_that_fails_one_way_loses_nothing(small_artifact: Path, tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    with ExitStack() as stack:
        wire, machines = stack.enter_context(network(5, DELAY_S, JITTER_S, LOSS, seed=1))
        at, store, *hosts = machines
        settings = {"store": stack.enter_context(store_on(store)), "lease_s": LEASE_S}
        servers = [
            Server(host, small_artifact, tmp_path / f"server-{number}", **settings) for number, host in enumerate(hosts)
        ]
        for server in servers:
            stack.callback(server.kill)
            server.launch()
        for server in servers:
            server.await_ready()
        client = Client(at, small_artifact, history, SESSIONS, *(server.address for server in servers))
        stack.callback(client.kill)
        disturb(wire, client, at, store, hosts)
        counts, outcome = client.end()
        print(f"{counts}; packets carried {wire.carried}, lost {wire.lost}, blocked {wire.blocked}")
        assert wire.lost > 20 and wire.blocked > 10
    assert outcome == "0 0 0"
    operations = read(history)
    assert operations and not check(operations)
