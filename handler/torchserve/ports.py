"""Which ports a server listens on: the configured ones if they are free, or free ones where 0 was asked for."""

import errno
import socket

from dnc_serve.handler.config import PORTS, ServeConfig

LOOPBACK = "127.0.0.1"


class AddressUnusable(Exception):
    """A configured host isn't this machine's, or a configured port is in use; the message names the setting."""


def host_of(config: ServeConfig, setting: str) -> str:
    """The address that a port is opened on; TorchServe's are for this machine alone."""
    return LOOPBACK if setting.startswith("torchserve_") else config.host


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now; raises OSError for an address that isn't this machine's."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: what a closed connection left behind doesn't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except PermissionError:
            return False
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def check_ports(config: ServeConfig) -> None:
    """Raises AddressUnusable for the first configured host or port that can't be had."""
    for setting in PORTS:
        port, host = getattr(config, setting), host_of(config, setting)
        try:
            free = is_free(host, port)
        except OSError as exc:
            raise AddressUnusable(f"host is {host!r}; expected an address of this machine ({exc.strerror})") from exc
        if not free:
            raise AddressUnusable(f"{setting} is {port}; expected a free port on {host}, but that one is taken")


def with_free_ports(config: ServeConfig, settings: tuple[str, ...]) -> ServeConfig:
    """The configuration with a free port wherever one of these settings says 0.

    Nothing holds these ports until the server takes them: whoever starts it tries again if another was faster.
    """
    taken: dict[str, int] = {}
    probes = []
    for setting in settings:
        if getattr(config, setting) == 0:
            probe = socket.socket()
            probe.bind((LOOPBACK, 0))
            probes.append(probe)  # held until all are chosen, so that they differ
            taken[setting] = probe.getsockname()[1]
    for probe in probes:
        probe.close()
    return config.model_copy(update=taken)


def free_port() -> int:
    """A port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
