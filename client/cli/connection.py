"""How a command finds its server: the flags that all of them share."""

import argparse
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dnc_serve.client.calls import DEFAULT_CONNECT_TIMEOUT_S
from dnc_serve.client.checks import checked_seconds, token_fault
from dnc_serve.client.cli.files import expecting
from dnc_serve.client.cli.parser import path
from dnc_serve.client.client import Client
from dnc_serve.client.errors import SessionError
from dnc_serve.client.info import ModelInfo
from dnc_serve.client.tls import TLS
from dnc_serve.client.transport import DEFAULT_TARGET, Token
from dnc_serve.proto.targets import check_target

NOTICE_AFTER_S = 1.0

Value = TypeVar("Value")


def add_connection(
    parser: argparse.ArgumentParser,
    title: str = "connection",
    otherwise: str = f"DNC_TARGET, with commas; {DEFAULT_TARGET}",
) -> None:
    """The flags that say where the server is and who calls; `otherwise` says what happens without `--target`."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--target", action="append", type=_argument(check_target), metavar="HOST:PORT",
        help=f"server; may be repeated for several with a common store ({otherwise})",
    )  # fmt: skip
    group.add_argument("--tls", action="store_true", help="use TLS, with the system's authorities")
    for flag, what in (
        ("--token-file", "bearer token (DNC_TOKEN has the token itself)"),
        ("--tls-ca", "PEM file of the authority that the server's certificate is of"),
        ("--tls-certificate", "PEM file of one's own certificate"),
        ("--tls-key", "PEM file of its key"),
    ):
        group.add_argument(flag, type=path, metavar="FILE", help=what)
    seconds = _argument(lambda text: checked_seconds("it", float(text)))
    for flag, default, what in (
        ("--timeout", 30.0, "for each call"),
        ("--connect-timeout", DEFAULT_CONNECT_TIMEOUT_S, "until a server answers at all"),
    ):
        group.add_argument(flag, type=seconds, default=default, metavar="SECONDS", help=f"{what} ({default:g})")


def add_session(parser: argparse.ArgumentParser, **how: Any) -> None:
    """The argument that names a session, the same for every command; `how` says what else argparse is told of it."""
    parser.add_argument("session", metavar="SESSION", **{"help": "the session's id", **how})


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flag that names a model of a new session."""
    parser.add_argument("--model", metavar="NAME", help="the model of a new session, of several that the server has")


def model_of(client: Client, session_id: str, name: str | None) -> ModelInfo:
    """The model that a session has, or that a new one would have; none is made."""
    if name is None and len(client.models()) > 1:
        with contextlib.suppress(SessionError), client.session(session_id, create=False) as session:
            return client.model(session.model, session.model_version)
    return client.model(name)


def targets(args: argparse.Namespace) -> list[str]:
    """The servers to talk to; ends with exit code 2 if those of DNC_TARGET can't be some."""
    if args.target:
        return list(args.target)
    try:
        named = _variable("DNC_TARGET", "host:port") or DEFAULT_TARGET
        # gRPC's own way to write several addresses of one server has commas, too.
        several = [named] if named.startswith(("ipv4:", "ipv6:")) else named.split(",")
        return [check_target(target.strip()) for target in several]
    except ValueError as exc:
        print(f"dnc: DNC_TARGET: {exc}", file=sys.stderr)
        raise SystemExit(2) from exc


def _variable(name: str, expected: str) -> str | None:
    value = os.environ.get(name)
    if value is not None and not value.strip():
        print(f"dnc: {name} is {value!r}; expected {expected}", file=sys.stderr)
        raise SystemExit(2)
    return value


def credentials(args: argparse.Namespace) -> tuple[Token | None, TLS | None]:
    """The token and the certificates; ends with exit code 2 if a file can't be read."""
    try:
        token = _token_of(args.token_file) if args.token_file else _variable("DNC_TOKEN", "a bearer token")
        if token is not None and (fault := token_fault(token)):
            raise ValueError(f"the token of {args.token_file or 'DNC_TOKEN'} {fault}")
        uses_tls = args.tls or args.tls_ca or args.tls_certificate or args.tls_key
        tls = TLS(ca=args.tls_ca, certificate=args.tls_certificate, key=args.tls_key) if uses_tls else None
        if tls is not None:
            tls.credentials()
    except (OSError, ValueError) as exc:
        print(f"dnc: {exc}", file=sys.stderr)
        raise SystemExit(2) from exc
    return token, tls


def _token_of(file: Path) -> str:
    with expecting(f"--token-file is {str(file)!r}", "a file with a bearer token"):
        token = file.read_text().strip()
    if not token:
        raise ValueError(f"--token-file is {str(file)!r}, which is empty; expected a bearer token in it")
    return token


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What a `Client` is made with, as the flags have it."""
    token, tls = credentials(args)
    return {
        "targets": targets(args), "token": token, "tls": tls, "timeout_s": args.timeout,
        "connect_timeout_s": args.connect_timeout,
    }  # fmt: skip


def connect(args: argparse.Namespace) -> Client:
    """The client that the flags describe, when its server has answered. Raises DncError if it doesn't."""
    try:
        client = Client(**settings(args))
    except ValueError as exc:
        print(f"dnc: {exc}", file=sys.stderr)
        raise SystemExit(2) from exc
    try:
        with _waiting_for(targets(args)):
            client.model()
    except BaseException:
        client.close()
        raise
    return client


def _argument(checked: Callable[[str], Value]) -> Callable[[str], Value]:
    """A check as argparse wants it, to say what is wrong in its own words."""

    def convert(text: str) -> Value:
        try:
            return checked(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return convert


@contextmanager
def _waiting_for(servers: Sequence[str]) -> Iterator[None]:
    """Says after a moment whom the command waits for, in place of the library's warning."""
    library = logging.getLogger("dnc_serve.client")
    level = library.level
    notice = threading.Timer(NOTICE_AFTER_S, lambda: print(f"waiting for {', '.join(servers)} …", file=sys.stderr))
    notice.daemon = True
    notice.start()
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(level)
        notice.cancel()
