"""Real proxies with their deployed configurations, in front of a test's servers."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from dnc_serve.handler.torchserve.ports import free_port
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from tests.deploy.observed import DEPLOY
from tests.handler.door import TIMEOUT
from tests.programs import program

CONFIGS = {"haproxy": DEPLOY / "haproxy" / "haproxy.cfg", "nginx": DEPLOY / "nginx" / "nginx.conf"}
COMMANDS = {
    "haproxy": (["haproxy", "-c", "-f"], ["haproxy", "-db", "-f"]),
    "nginx": (["nginx", "-t", "-p", ".", "-c"], ["nginx", "-g", "daemon off;", "-p", ".", "-c"]),
}
FIRST, SECOND = "127.0.0.1:8510", "127.0.0.1:8520"


@contextmanager
def proxy(name: str, servers: Sequence[str], folder: Path) -> Iterator[str]:
    """The address of a proxy that is configured as deployed, but for the addresses; checked, run, and stopped."""
    program(name)
    port = free_port()
    text = _with_servers(CONFIGS[name].read_text(), servers)
    text = text.replace("bind :8500", f"bind 127.0.0.1:{port}").replace("listen 8500", f"listen 127.0.0.1:{port}")
    if name == "nginx":
        text = f"pid nginx.pid;\nerror_log {folder}/error.log;\n{text}"
    config = folder / CONFIGS[name].name
    config.write_text(text)
    check, run = COMMANDS[name]
    checked = subprocess.run([*check, str(config)], cwd=folder, capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen([*run, str(config)], cwd=folder)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


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


def until_served(address: str) -> None:
    """Returns when a call through the proxy succeeds."""
    deadline = time.monotonic() + TIMEOUT
    with grpc.insecure_channel(address) as channel:
        while True:
            try:
                dnc_pb2_grpc.DncServiceStub(channel).GetModel(
                    pb.GetModelRequest(), timeout=TIMEOUT, wait_for_ready=True
                )
                return
            except grpc.RpcError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
