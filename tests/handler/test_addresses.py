"""Every way to write an address, at every listener: it works, or is refused with the reason."""

import socket
import urllib.request
from pathlib import Path

import pytest

from dnc_serve.client import Client
from dnc_serve.handler.addresses import host_port, is_loopback, parse_host, reached_at, split_address
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.ports import AddressUnusable, check_ports
from dnc_serve.handler.runtime.probe import health
from dnc_serve.handler.settings import ConfigError, load_config
from tests.handler.door import open_door


def link_local() -> str:
    """An address of this machine that needs its interface; a test is skipped where there is none."""
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.is_file() else ():
        address, _, _, scope, _, interface = line.split()
        if scope == "20":
            return f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))}%{interface}"
    pytest.skip("no interface has a link-local IPv6 address")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "::1", "[::1]", "::", "0.0.0.0", "::ffff:127.0.0.1", "link"]
)
def test_both_doors_listen_at_every_kind_of_address(host: str, artifact_folder: Path, tmp_path: Path) -> None:
    host = link_local() if host == "link" else host
    with open_door(artifact_folder, tmp_path, host=host, insecure=True) as door:
        grpc = door.addresses.grpc
        assert split_address(grpc)[0] == parse_host(host)
        assert health(grpc, ServeConfig(), 30) == "SERVING"
        with Client(host_port(*reached_at(grpc))) as client:
            assert client.model().input_size == 5
        where, port = reached_at(door.addresses.metrics)
        # urllib would take the interface for a part of the name.
        with socket.create_connection((where, port)) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"dnc_sessions" in connection.makefile("rb").read()


def test_every_address_of_the_machine_is_both_kinds(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, host="::", insecure=True) as door:
        port = split_address(door.addresses.grpc)[1]
        for target in (f"127.0.0.1:{port}", f"[::1]:{port}", f"localhost:{port}"):
            with Client(target) as client:
                assert client.model().input_size == 5
        metrics = split_address(door.addresses.metrics)[1]
        for host in ("127.0.0.1", "[::1]"):
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            assert b"dnc_sessions" in direct.open(f"http://{host}:{metrics}/metrics", timeout=30).read()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8500", "[::1]:8500", "::1]", "[localhost]", "http://localhost", "127.1", "300.1.1.1", "*"],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config({"host": host})
    assert str(refused.value) == (
        f"host is {host!r} (--host); expected an IP address or a name, and no port, which has a setting of its own"
    )


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", "host is '192.0.2.1'; expected an address of this machine ("),
        ("2001:db8::1", "host is '2001:db8::1'; expected an address of this machine ("),
        (
            "fe80::1",
            "host is 'fe80::1'; expected an address of this machine, a link-local one with its interface, as in",
        ),
        ("fe80::1%nosuch", "host is 'fe80::1%nosuch'; expected an address of this machine, "),
        ("no-such-name.invalid", "host is 'no-such-name.invalid'; expected an address of this machine ("),
    ],
)
def test_what_is_another_machine_s_is_refused(host: str, why: str) -> None:
    with pytest.raises(AddressUnusable) as refused:
        check_ports(ServeConfig(host=host, insecure=True, port=0, metrics_port=0))
    assert str(refused.value).startswith(why)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "::ffff:127.0.0.1", "localhost"])
def test_what_only_this_machine_reaches_needs_no_protection(host: str) -> None:
    assert is_loopback(ServeConfig(host=host).host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "fe80::1%eth0", "::ffff:10.0.0.1", "example.com"])
def test_what_others_reach_does(host: str) -> None:
    with pytest.raises(ConfigError, match="insecure"):
        load_config({"host": host})


@pytest.mark.parametrize("address", ["[::1]:8500", "host.example:1", "10.0.0.7:8500"])
def test_what_is_advertised_is_as_clients_write_it(address: str) -> None:
    assert ServeConfig(advertise=address).advertise == address


@pytest.mark.parametrize("address", ["::1:8500", "[::1]", "host", "host:70000", "host:-1", "http://host:1", ":8500"])
def test_what_clients_could_not_use_is_not_advertised(address: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        load_config({"advertise": address})
