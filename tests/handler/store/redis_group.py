"""A primary, its replicas, and Sentinels that watch them: real processes, on ports of their own."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.folders import memory_folder
from tests.handler.store.conftest import RedisServer
from tests.ports import own_port
from tests.programs import program
from tests.waiting import PATIENCE_S, wait_until

SERVICE = "dnc"
SENTINELS = 3
DOWN_AFTER_MS = 1000


class Sentinel:
    """One of those that decide together which server is the primary."""

    def __init__(self, folder: Path, primary_port: int, password: str = "") -> None:
        """With a password, the only one."""
        self._password = password or None
        self.port = own_port()
        quorum = 1 if password else SENTINELS // 2 + 1
        config = folder / "sentinel.conf"
        config.write_text(
            f'port {self.port}\nbind 127.0.0.1\ndir "{folder}"\n'
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} {quorum}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n" + (f"requirepass {password}\n" if password else "")
        )
        with (folder / "log").open("ab") as log:
            executable = program("redis-server", "valkey-server")
            self._process = subprocess.Popen([executable, str(config), "--sentinel"], stdout=log, stderr=log)

    def state(self) -> dict[str, object]:
        """What it knows of the primary; empty while it does not answer."""
        with contextlib.closing(
            redis.Redis(port=self.port, password=self._password, socket_timeout=PATIENCE_S)
        ) as client:
            try:
                return dict(client.sentinel_master(SERVICE))
            except redis.RedisError:
                return {}

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class RedisGroup:
    """The servers, the first of which begins as the primary, and the Sentinels."""

    def __init__(self, servers: list[RedisServer], sentinels: list[Sentinel]) -> None:
        self.servers, self.sentinels = servers, sentinels

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    def primary(self) -> RedisServer:
        """As all Sentinels have it."""
        wait_until(lambda: len({sentinel.state().get("port") for sentinel in self.sentinels}) == 1, "they agree")
        port = self.sentinels[0].state()["port"]
        return next(server for server in self.servers if server.port == port)

    def fail_over(self, kill: RedisServer) -> RedisServer:
        """The next primary, once it is chosen."""
        kill.kill()
        wait_until(
            lambda: all(sentinel.state().get("port") not in (None, kill.port) for sentinel in self.sentinels),
            "another server is the primary",
        )
        return self.primary()


@contextlib.contextmanager
def running_group(replicas: int, **settings: str) -> Iterator[RedisGroup]:
    """With `settings` of all servers; returns when each replica has synced with the primary."""
    with contextlib.ExitStack() as stack:
        servers: list[RedisServer] = []
        for _ in range(1 + replicas):
            whose = {"replicaof": f"127.0.0.1 {servers[0].port}"} if servers else {}
            servers.append(RedisServer(stack.enter_context(memory_folder()), **settings, **whose))
            stack.callback(servers[-1].kill)
        await_replicas(servers[0], replicas)
        sentinels: list[Sentinel] = []
        for _ in range(SENTINELS):
            sentinels.append(Sentinel(stack.enter_context(memory_folder()), servers[0].port))
            stack.callback(sentinels[-1].kill)

        def complete(state: dict[str, object]) -> bool:
            return state.get("num-slaves") == replicas and state.get("num-other-sentinels") == SENTINELS - 1

        wait_until(lambda: all(complete(sentinel.state()) for sentinel in sentinels), "Sentinels know all")
        yield RedisGroup(servers, sentinels)


def await_replicas(primary: RedisServer, number: int) -> None:
    """Returns when so many have all of the primary's data, and their own files have it."""
    with contextlib.closing(primary.client()) as client:

        def synced() -> bool:
            client.set("dnc:barrier", "")
            return bool(client.execute_command("WAITAOF", 1, number, 1000)[1] >= number)

        wait_until(synced, f"{number} replicas are in sync")
