"""How a command finds its server: the flags that all of them share."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from dnc_serve.client.client import Client
from dnc_serve.client.hosts import DEFAULT_TARGET, TLS, Token


def add_connection(parser: argparse.ArgumentParser) -> None:
    """The flags that say where the server is and who calls."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--target",
        action="append",
        metavar="HOST:PORT",
        help=f"server; may be repeated for several with a common store (DNC_TARGET, {DEFAULT_TARGET})",
    )
    group.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token (DNC_TOKEN has the token itself)")
    group.add_argument("--tls", action="store_true", help="use TLS, with the system's authorities")
    group.add_argument("--tls-ca", metavar="FILE", help="PEM file of the authority that the server's certificate is of")
    group.add_argument("--tls-certificate", metavar="FILE", help="PEM file of one's own certificate")
    group.add_argument("--tls-key", metavar="FILE", help="PEM file of its key")
    group.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="for each call (30)")


def add_session(parser: argparse.ArgumentParser, **how: Any) -> None:
    """The argument that names a session, the same for every command; `how` says what else argparse is told of it."""
    parser.add_argument("session", metavar="SESSION", **{"help": "the session's id", **how})


def targets(args: argparse.Namespace) -> list[str]:
    """The servers to talk to."""
    return args.target or [os.environ.get("DNC_TARGET", DEFAULT_TARGET)]


def credentials(args: argparse.Namespace) -> tuple[Token | None, TLS | None]:
    """The token and the certificates; ends with exit code 2 if a file can't be read."""
    try:
        token = args.token_file.read_text().strip() if args.token_file else os.environ.get("DNC_TOKEN") or None
        uses_tls = args.tls or args.tls_ca or args.tls_certificate
        tls = TLS(ca=args.tls_ca, certificate=args.tls_certificate, key=args.tls_key) if uses_tls else None
        if tls is not None:
            tls.credentials()
    except (OSError, ValueError) as exc:
        print(f"dnc: {exc}", file=sys.stderr)
        raise SystemExit(2) from exc
    return token, tls


def connect(args: argparse.Namespace) -> Client:
    """The client that the flags describe."""
    token, tls = credentials(args)
    return Client(targets(args), token=token, tls=tls, timeout_s=args.timeout)
