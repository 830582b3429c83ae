"""Proxies of the environment: never before this machine's own addresses, and named wherever they matter."""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dnc_serve.client import AsyncClient, Client, Retry, Unavailable
from dnc_serve.client.cli.load import Load, Server, Span, stream_load
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.probe import health
from dnc_serve.proto.targets import channel_options, is_loopback, proxy_of
from tests.handler.door import open_door
from tests.handler.harness import INPUT_SIZE, random_inputs

NOBODY = "127.0.0.1:9"  # where no proxy is
QUICK = Retry(first_wait_s=0.01, longest_wait_s=0.1)
REMOTE = "sessions.example:8500"
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")


@pytest.fixture(params=[*VARIABLES, *map(str.upper, VARIABLES), "GRPC_ADDRESS_HTTP_PROXY"])
def dead_proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable of the environment that names a proxy which isn't there."""
    monkeypatch.setenv(request.param, NOBODY if request.param.startswith("GRPC_A") else f"http://{NOBODY}")
    monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "127.0.0.0/8,::1/128")
    return str(request.param)


@pytest.mark.usefixtures("dead_proxy")
def test_a_client_reaches_this_machine_directly(address: str, caplog: pytest.LogCaptureFixture) -> None:
    port = address.rpartition(":")[2]
    for target in (address, f"localhost:{port}", f"LocalHost:{port}", f"dns:///localhost:{port}", f"ipv4:{address}"):
        with Client(target, token="secret", timeout_s=10) as client, client.session() as session:
            session.step(random_inputs(1, 1))
    assert not caplog.records


def test_a_server_tests_itself_and_is_asked_for_its_health_directly(
    small_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"http://{NOBODY}")
    with open_door(small_artifact, tmp_path) as door:
        assert health(door.addresses.grpc, ServeConfig(), 10) == "SERVING"
        assert stream_load(Server(door.addresses.grpc, INPUT_SIZE), Load(rounds=1), Span(0.0)).calls == 1


@pytest.mark.parametrize("command", [["health"], ["sessions"], ["doctor", "--serving"]])
def test_commands_reach_this_machine_directly(address: str, command: list[str]) -> None:
    env = {**os.environ, "DNC_TARGET": address, **dict.fromkeys(VARIABLES, f"http://{NOBODY}")}
    if command[0] == "doctor":
        command = [*command, address]
    done = subprocess.run(
        [sys.executable, "-m", "dnc_serve.client.cli", *command],
        capture_output=True, text=True, timeout=60, check=False, env=env,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "target",
    [
        "localhost:1", "LOCALHOST:1", "localhost.:1", "me.localhost:1", "ip6-localhost:1", "127.0.0.1:1", "127.9.8.7:1",
        "0.0.0.0:1", "[::1]:1", "[::]:1", "[0:0:0:0:0:0:0:1]:1", "[::ffff:127.0.0.1]:1", "unix:/tmp/x", "unix:///tmp/x",
        "unix-abstract:x", "dns:localhost:1", "dns:///127.0.0.1:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1",
    ],
)  # fmt: skip
def test_what_is_on_this_machine(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("grpc_proxy", "http://proxy:3128")
    assert is_loopback(target)
    assert proxy_of(target) is None
    assert ("grpc.enable_http_proxy", 0) in channel_options(target)


@pytest.mark.parametrize(
    "target",
    ["host:1", "128.0.0.1:1", "localhost.example:1", "notlocalhost:1", "[::2]:1", "10.0.0.1:1", "127.0.0.1.example:1"],
)
def test_what_is_elsewhere(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_loopback(target)
    assert proxy_of(target) is None
    monkeypatch.setenv("http_proxy", "http://third:1")
    assert str(proxy_of(target)) == "the proxy http://third:1 (http_proxy in the environment)"
    monkeypatch.setenv("https_proxy", "http://me:password@second:1/")
    assert str(proxy_of(target)) == "the proxy http://second:1 (https_proxy in the environment)"
    monkeypatch.setenv("grpc_proxy", "")
    assert proxy_of(target) is None  # as in gRPC, an empty one means none
    monkeypatch.setenv("grpc_proxy", "socks5://first:1")
    assert proxy_of(target) is None  # gRPC can't speak to it, and goes directly


@pytest.mark.parametrize(
    "exempt", ["*", "example", ".example", "*.example", "other, sessions.example", "SESSIONS.example"]
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY", "no_grpc_proxy"])
def test_what_needs_no_proxy(monkeypatch: pytest.MonkeyPatch, variable: str, exempt: str) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv(variable, exempt)
    assert proxy_of(REMOTE) is None
    monkeypatch.setenv(variable, "10.0.0.0/8,ample,xsessions.example")
    assert proxy_of(REMOTE) is not None
    assert proxy_of("10.1.2.3:1") is None


@asynccontextmanager
async def connecting_proxy(server: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy for CONNECT that leads all to one server: its address, and what it was asked for."""
    asked: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        asked.append(request.decode().split()[1])
        host, _, port = server.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for pair in ((reader, far_writer), (far_reader, writer)):
            tasks.add(asyncio.create_task(pump(*pair)))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*listening.sockets[0].getsockname()[:2]), asked
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_proxy_leads_elsewhere_and_is_named_in_the_warning_about_the_token(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with connecting_proxy(address) as (proxy, asked):
        monkeypatch.setenv("http_proxy", f"http://me:password@{proxy}")
        async with AsyncClient(REMOTE, token="secret") as client, client.session() as session:
            await session.step(random_inputs(1, 2))
    assert set(asked) == {REMOTE}
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning == (
        f"a token is sent without TLS to {REMOTE}, through the proxy http://{proxy} (http_proxy in the environment)"
    )


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:password@{NOBODY}")
    named = f"the proxy http://{NOBODY} (https_proxy in the environment)"
    with (
        Client(REMOTE, retry=QUICK, connect_timeout_s=0.2) as client,
        pytest.raises(Unavailable, match=f"no server answers at {REMOTE}: the way there is through") as caught,
    ):
        client.session()
    assert named in caught.value.message
    assert "no_proxy" in caught.value.message
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert named in warning.getMessage()
    assert "password" not in caught.value.message + caplog.text


async def test_a_proxy_that_is_lost_in_a_stream_is_named_too(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncClient(REMOTE, retry=None) as client:
        async with connecting_proxy(address) as (proxy, _):
            monkeypatch.setenv("http_proxy", f"http://{proxy}")
            session = await client.session()
            await session.step(random_inputs(1, 2))
        with pytest.raises(Unavailable, match=f"through the proxy http://{proxy}"):
            for _ in range(3):
                await session.step(random_inputs(1, 2))
