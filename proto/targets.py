"""How a server's address is written, and how a channel gets there: past the proxy of the environment, or through it.

gRPC takes a proxy from `grpc_proxy`, `https_proxy` or `http_proxy` for every target, this machine's own addresses
included. Here one of this machine's is always reached directly, and whoever opens a channel knows through which proxy.
"""

import ipaddress
import os
import re
from dataclasses import dataclass

Option = tuple[str, str | int]

EXPECTED = "host:port, as localhost:8500, 10.0.0.7:8500 or [::1]:8500"
DIRECTLY: tuple[Option, ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.address_http_proxy_enabled_addresses", ""),  # a proxy for addresses, which has variables of its own
)
"""The options of a channel that passes by every proxy."""

_SOCKETS = ("unix:", "unix-abstract:")
_SCHEMES = ("dns:", "ipv4:", "ipv6:")
_HOST = re.compile(r"[^\s/\\@?#,:\[\]\"']+")
# What hosts files call loopback.
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback")
_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy, and the variable of the environment that names it."""

    url: str
    variable: str

    def __str__(self) -> str:
        """Without the password that may be in it."""
        place = self.url.rpartition("@")[2].removeprefix("http://").partition("/")[0]
        return f"the proxy http://{place} ({self.variable} in the environment)"


def check_target(target: object) -> str:
    """The target, if gRPC can make something of it. Raises ValueError that says what is wrong with it."""
    if not isinstance(target, str):
        raise ValueError(f"target is {target!r}; expected {EXPECTED}")
    if target.startswith(_SOCKETS):
        if target.partition(":")[2].strip("/"):
            return target
        raise ValueError(f"target is {target!r}, without the socket's path")
    for address in _addresses(target):
        _check_address(address, target)
    return target


def is_loopback(target: str) -> bool:
    """Whether all of it is on this machine: 127.0.0.0/8, ::1, localhost, a socket, or the address that means any."""
    return target.startswith(_SOCKETS) or all(_is_loopback(_split(address)[0]) for address in _addresses(target))


def place_of(target: str) -> tuple[str, int] | None:
    """Host and port of the first address; None for a socket."""
    if target.startswith(_SOCKETS):
        return None
    host, port = _split(_addresses(target)[0])
    return host, int(port)


def proxy_of(target: str) -> Proxy | None:
    """The proxy through which a target is reached, as the environment has it now."""
    variable = next((name for name in _VARIABLES if name in os.environ), "")
    url = os.environ.get(variable, "")
    # gRPC speaks to no other kind, and then goes directly.
    if not url.startswith("http://") or any(_is_exempt(_split(address)[0], target) for address in _addresses(target)):
        return None
    return Proxy(url, variable)


def channel_options(target: str) -> tuple[Option, ...]:
    """How a channel to the target is to treat proxies."""
    proxy = proxy_of(target)
    return (("grpc.http_proxy", proxy.url),) if proxy else DIRECTLY


def _is_exempt(host: str, target: str) -> bool:
    if is_loopback(target):
        return True
    exempt = next((os.environ[name] for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY") if name in os.environ), "")
    address = _ip(host)
    for entry in filter(None, map(str.strip, exempt.lower().split(","))):
        if entry == "*" or f".{host.lower()}".endswith(f".{entry.lstrip('*.')}"):
            return True
        if address is not None and (network := _network(entry)) is not None and address in network:
            return True
    return False


def _addresses(target: str) -> list[str]:
    """What a target names: `dns:///host:port` and `ipv4:host:port,host:port` too."""
    scheme = next((scheme for scheme in _SCHEMES if target.startswith(scheme)), "")
    rest = target[len(scheme) :]
    if rest.startswith("//"):  # the name server's place
        rest = rest[2:].partition("/")[2]
    return rest.split(",") if scheme in ("ipv4:", "ipv6:") else [rest]


def _split(address: str) -> tuple[str, str]:
    """Host, without the brackets of an IPv6 address, and port."""
    host, _, port = address.rpartition(":")
    return (host[1:-1] if host.startswith("[") and host.endswith("]") else host), port


def _check_address(address: str, target: str) -> None:
    scheme, separator, _ = address.partition("://")
    if separator:
        raise ValueError(f"target is {target!r}, which begins with {scheme}://; expected {EXPECTED}")
    if "," in address:
        raise ValueError(f"target is {target!r}; expected one address, or a list of several (`--target` once for each)")
    host, port = _split(address)
    if not re.fullmatch(r"[0-9]+", port) or not 1 <= int(port[:6]) <= 65535:
        if _ip(address.strip("[]")) is not None or not _HOST.fullmatch(host):
            raise ValueError(f"target is {target!r}; expected {EXPECTED}")
        raise ValueError(f"target is {target!r}, with the port {port!r}; expected one from 1 to 65535")
    if address.startswith("["):
        if not isinstance(_ip(host), ipaddress.IPv6Address):
            raise ValueError(f"target is {target!r}, with no IPv6 address in its brackets; expected {EXPECTED}")
    elif ":" in host:
        raise ValueError(f"target is {target!r}; expected brackets around an IPv6 address, as in [::1]:8500")
    elif not _HOST.fullmatch(host) or not host.isprintable():
        raise ValueError(f"target is {target!r}; expected {EXPECTED}")


def _is_loopback(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return True
    address = _ip(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    # Whoever connects to the address that means any reaches this machine.
    return address is not None and (address.is_loopback or address.is_unspecified)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
