"""What a fork leaves of a client: nothing that works.

gRPC's threads stay behind in the process that was forked. If that one had opened a connection, gRPC never works again
in the child, also not for a new client: calls hang past every timeout, or the process dies. (GRPC_ENABLE_FORK_SUPPORT
changes nothing about that: it stands aside while other threads are in gRPC, and those of asyncio always are.) So the
child is told at once.
"""

import os

from dnc_serve.client.errors import ClientClosed

_used = False
_lost = False


def note_use() -> None:
    """This process has begun to use gRPC."""
    global _used
    _used = True


def check_process() -> None:
    """Raises ClientClosed where gRPC can't work any more."""
    if _lost:
        raise ClientClosed(
            "a client was used in the process that this one was forked from, and gRPC doesn't work after that: start "
            'processes with spawn (multiprocessing.get_context("spawn")), or use no client before the fork'
        )


def _after_fork() -> None:
    global _lost
    _lost = _used


os.register_at_fork(after_in_child=_after_fork)
