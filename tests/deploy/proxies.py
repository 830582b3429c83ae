"""Real proxies with their deployed configurations, in front of a test's servers."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import yaml

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from tests.deploy.observed import DEPLOY
from tests.handler.door import TIMEOUT
from tests.ports import own_port
from tests.programs import program
from tests.waiting import wait_until

CONFIGS = {
    "envoy": DEPLOY / "envoy" / "envoy.yaml",
    "haproxy": DEPLOY / "haproxy" / "haproxy.cfg",
    "nginx": DEPLOY / "nginx" / "nginx.conf",
}
# What each is told to check its configuration, and to run in the foreground.
COMMANDS = {
    "envoy": (["--mode", "validate", "-c"], ["--disable-hot-restart", "--log-level", "warning", "-c"]),
    "haproxy": (["-c", "-f"], ["-db", "-f"]),
    "nginx": (["-t", "-p", ".", "-c"], ["-g", "daemon off;", "-p", ".", "-c"]),
}
STOP_TIMEOUT_S = 60
FIRST, SECOND = "127.0.0.1:8510", "127.0.0.1:8520"


@contextmanager
def proxy(name: str, servers: Sequence[str], folder: Path) -> Iterator[str]:
    """The address of a proxy that is configured as deployed, but for the addresses; checked, run, and stopped."""
    executable = program(name)
    port = own_port()
    text = CONFIGS[name].read_text()
    if name == "envoy":
        text = _envoy(text, servers, port)
    else:
        text = _with_servers(text, servers)
        text = text.replace("bind :8500", f"bind 127.0.0.1:{port}").replace("listen 8500", f"listen 127.0.0.1:{port}")
    if name == "nginx":
        text = f'pid nginx.pid;\nerror_log "{folder}/error.log";\n{text}'
    config = folder / CONFIGS[name].name
    config.write_text(text)
    check, run = COMMANDS[name]
    checked = subprocess.run([executable, *check, str(config)], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen([executable, *run, str(config)], cwd=folder)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _with_servers(text: str, servers: Sequence[str]) -> str:
    """Each line about the first server, once for each of ours; those about the second one are left out."""
    assert FIRST in text
    assert SECOND in text
    lines: list[str] = []
    for line in text.splitlines():
        if FIRST in line:
            lines += [line.replace(FIRST, server) for server in servers]
        elif SECOND not in line:
            lines.append(line)
    return "\n".join(lines) + "\n"


def _envoy(text: str, servers: Sequence[str], port: int) -> str:
    """With our servers, and at that port."""
    config: Any = yaml.safe_load(text)
    config["admin"]["address"]["socket_address"]["port_value"] = own_port()
    [listener], [cluster] = config["static_resources"]["listeners"], config["static_resources"]["clusters"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    [group] = cluster["load_assignment"]["endpoints"]
    one = yaml.safe_dump(group["lb_endpoints"][0])
    host, _, first_port = FIRST.partition(":")
    assert FIRST in one and f"port_value: {first_port}" in one
    group["lb_endpoints"] = [
        yaml.safe_load(one.replace(FIRST, server).replace(f"port_value: {first_port}", f"port_value: {server_port}"))
        for server in servers
        for server_port in [server.removeprefix(f"{host}:")]
    ]
    return yaml.safe_dump(config)


def until_served(address: str) -> None:
    """Returns when calls through the proxy succeed."""
    with grpc.insecure_channel(address) as channel:
        stub = dnc_pb2_grpc.DncServiceStub(channel)

        def served() -> bool:
            try:
                stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT, wait_for_ready=True)
            except grpc.RpcError:
                return False
            return True

        wait_until(served, f"{address} leads to a server")
