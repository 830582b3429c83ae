"""Which ports a server listens on: the configured ones if they are free, or free ones where 0 was asked for."""

import errno
import socket
from collections.abc import Collection
from contextlib import ExitStack

from dnc_serve.handler.addresses import bound, socket_addresses, why_not_free
from dnc_serve.handler.config import PORTS, ServeConfig, flag

LOOPBACK = "127.0.0.1"


class AddressUnusable(Exception):
    """A configured host isn't this machine's, or configured ports are in use; the message names the settings."""


class PortTaken(AddressUnusable):
    """Somebody else listens there."""


def host_of(config: ServeConfig, setting: str) -> str:
    """The address that a port is opened on; TorchServe's are for this machine alone."""
    return LOOPBACK if setting.startswith("torchserve_") else config.host


def check_port(config: ServeConfig, setting: str) -> None:
    """Raises AddressUnusable if the server could not listen there now, PortTaken if that is because somebody does."""
    port, host = getattr(config, setting), host_of(config, setting)
    error = None if port is None else why_not_free(host, port)
    if error is None:
        return
    if error.errno == errno.EADDRINUSE:
        raise PortTaken(f"something listens already at {port} ({setting})")
    if isinstance(error, PermissionError):
        raise AddressUnusable(f"{setting} is {port}; expected a port that this user may open, as those from 1024 on")
    hint = ", a link-local one with its interface, as in fe80::1%eth0" if host.startswith("fe80:") else ""
    raise AddressUnusable(f"host is {host!r}; expected an address of this machine{hint} ({error.strerror})")


def check_ports(config: ServeConfig) -> None:
    """Raises AddressUnusable for a configured host that can't be had, or for all ports that can't."""
    taken = []
    for setting in config.ports:
        try:
            check_port(config, setting)
        except PortTaken:
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
    return {port for setting in PORTS if (port := getattr(config, setting)) is not None}


def free_port(not_at: Collection[int] = ()) -> int:
    """A port of the loopback address that nothing listens on now, other than these."""
    with _free_socket(not_at) as probe:
        return int(probe.getsockname()[1])


def _free_socket(not_at: Collection[int]) -> socket.socket:
    with ExitStack() as refused:
        while True:
            probe = bound(socket_addresses(LOOPBACK, 0)[0])
            if probe.getsockname()[1] not in not_at:
                return probe
            refused.enter_context(probe)
