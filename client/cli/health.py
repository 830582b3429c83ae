"""`dnc health`: does the server serve? For health checks of containers and scripts."""

import argparse
import asyncio
import sys
from typing import Any

from dnc_serve.client.cli.connection import add_connection, credentials, targets
from dnc_serve.client.transport import Hosts

HELP = "exit with 0 if the server serves, else with 1"
CHECK = "/grpc.health.v1.Health/Check"
# A HealthCheckResponse whose status is SERVING; the client library does without the package that has its class.
SERVING = b"\x08\x01"


def configure(parser: argparse.ArgumentParser) -> None:
    add_connection(parser)
    parser.set_defaults(timeout=5.0)


def run(args: argparse.Namespace) -> int:
    token, tls = credentials(args)
    serves = [asyncio.run(_serves(Hosts([target], token, tls), args.timeout)) for target in targets(args)]
    if all(serves):
        print("serving")
        return 0
    print("dnc health: the server is there, and does not serve now", file=sys.stderr)
    return 1


async def _serves(hosts: Hosts, timeout_s: float) -> bool:
    try:
        async with hosts.translated(hosts.targets[0]):
            check: Any = hosts.channel(hosts.targets[0]).unary_unary(CHECK)
            return bool(await check(b"", timeout=timeout_s, metadata=hosts.metadata()) == SERVING)
    finally:
        await hosts.close()
