"""Which ports a server listens on: the configured ones if they are free, or free ones where 0 was asked for."""

import errno
import socket
from collections.abc import Collection
from contextlib import ExitStack

from dnc_serve.handler.config import PORTS, ServeConfig, flag

LOOPBACK = "127.0.0.1"


class AddressUnusable(Exception):
    """A configured host isn't this machine's, or configured ports are in use; the message names the settings."""


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
    """Raises AddressUnusable for a configured host that can't be had, or for all ports that can't."""
    taken = []
    for setting in PORTS:
        port, host = getattr(config, setting), host_of(config, setting)
        try:
            free = is_free(host, port)
        except OSError as exc:
            raise AddressUnusable(f"host is {host!r}; expected an address of this machine ({exc.strerror})") from exc
        if not free:
            taken.append(setting)
    if taken:
        ports = ", ".join(f"{getattr(config, setting)} ({setting})" for setting in taken)
        free_ones = " ".join(f"{flag(setting)} 0" for setting in taken)
        raise AddressUnusable(
            f"something listens already at {ports}; end it, or take free ports with {free_ones}; "
            "`dnc doctor` checks them all"
        )


def with_free_ports(config: ServeConfig, settings: tuple[str, ...]) -> ServeConfig:
    """The configuration with a free port wherever one of these settings says 0.

    Nothing holds these ports until the server takes them: whoever starts it tries again if another was faster.
    """
    taken: dict[str, int] = {}
    with ExitStack() as held:  # until all are chosen, so that they differ
        for setting in settings:
            if getattr(config, setting) == 0:
                taken[setting] = held.enter_context(_free_socket(configured_ports(config))).getsockname()[1]
    return config.model_copy(update=taken)


def configured_ports(config: ServeConfig) -> set[int]:
    """Nobody else may take these, even while nothing listens there: a server may be on its way back."""
    return {getattr(config, setting) for setting in PORTS}


def free_port(not_at: Collection[int] = ()) -> int:
    """A port of the loopback address that nothing listens on now, other than these."""
    with _free_socket(not_at) as probe:
        return int(probe.getsockname()[1])


def _free_socket(not_at: Collection[int]) -> socket.socket:
    with ExitStack() as refused:
        while True:
            probe = socket.socket()
            probe.bind((LOOPBACK, 0))
            if probe.getsockname()[1] not in not_at:
                return probe
            refused.enter_context(probe)
