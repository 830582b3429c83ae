"""How hosts and ports are written and read, and whether a server can listen there: IPv4, IPv6 and names alike."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any, TypeAlias

# A name that every resolver takes for one; `127.1` is neither that nor an address to all of them.
_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]*[A-Za-z_][A-Za-z0-9_-]*\.?")
LOOPBACK_NAMES = ("localhost", "ip6-localhost", "ip6-loopback")
# What is listened on by all addresses of a machine is reached at this one.
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  nothing is bound to it here


# As `getaddrinfo` gives it: family, kind, protocol, name, address.
SocketAddress: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]


def parse_host(text: str) -> str:
    """The host without the brackets in which an IPv6 address may stand. Raises ValueError."""
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if "[" in text or not _NAME.fullmatch(host):
            raise ValueError("expected an IP address or a name, and no port, which has a setting of its own") from None
    return host


def host_port(host: str, port: int) -> str:
    """As in `127.0.0.1:8500` and `[::1]:8500`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of what `host_port` wrote. Raises ValueError."""
    host, separator, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not (port.isascii() and port.isdecimal() and int(port) < 65536) or (":" in host) != bracketed:
        raise ValueError("expected host:port, an IPv6 address in brackets: [::1]:8500")
    return parse_host(host), int(port)


def reached_at(address: str) -> tuple[str, int]:
    """Host and port at which what listens at the address can be connected to from this machine."""
    host, port = split_address(address)
    return _REACHED_AT.get(host, host), port


def is_every_address(host: str) -> bool:
    """Whether it is no address, but all that the machine has."""
    return host in _REACHED_AT


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in LOOPBACK_NAMES
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def socket_addresses(host: str, port: int) -> Sequence[SocketAddress]:
    """Where a server can listen for a host and port, a name's first address first. Raises OSError."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)


def bound(where: SocketAddress, *options: int) -> socket.socket:
    """A TCP socket that is bound there, with these options of sockets set. Raises OSError."""
    family, kind, protocol, _, address = where
    taken = socket.socket(family, kind, protocol)
    try:
        for option in options:
            taken.setsockopt(socket.SOL_SOCKET, option, 1)
        taken.bind(address)
    except OSError:
        taken.close()
        raise
    return taken


def why_not_free(host: str, port: int) -> OSError | None:
    """Why a server could not listen there now; None if it could."""
    try:
        for where in socket_addresses(host, port):
            # The option as servers have it: what a closed connection left behind doesn't count.
            with bound(where, socket.SO_REUSEADDR) as probe:
                probe.listen(1)
    except OSError as exc:
        return exc
    return None
