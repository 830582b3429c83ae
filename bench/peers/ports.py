"""Ports for servers that can't be told to choose one."""

import socket
import time
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens at now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until_open(port: int, timeout_s: float) -> None:
    """Raises TimeoutError if nobody listens by then."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody listens at port {port} after {timeout_s:.0f} s") from None
            time.sleep(0.1)
