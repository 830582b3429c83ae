"""`dnc token`: a bearer token, and the entry by which a server knows it."""

import argparse
import hashlib
import math
import re
import secrets
import sys
import tomllib
from datetime import UTC, datetime, timedelta

from dnc_serve.client.cli.files import expecting
from dnc_serve.client.cli.parser import count, path

HELP = "make a bearer token, and its entry for the server's file of tokens"

MOST_DAYS = 365 * 1000  # a calendar has years of four digits
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="sessions made with the token belong to this name")
    parser.add_argument("--file", type=path, help="append the entry to this file, instead of printing it on stderr")
    parser.add_argument("--days", type=days, help="how long it lasts (for ever)")
    parser.add_argument("--read-only", action="store_true", help="it may look, not change anything")
    parser.add_argument("--max-sessions", type=count, metavar="N", help="alive at once (no limit)")
    parser.add_argument("--max-state-bytes", type=count, metavar="N", help="of all its sessions' states (no limit)")
    parser.add_argument("--max-timesteps-per-second", type=rate, metavar="N", help="of all its sessions (no limit)")


def run(args: argparse.Namespace) -> int:
    if not _NAME.fullmatch(args.name):
        print(f"dnc token: name {args.name!r}: expected 1 to 64 letters, digits or any of . _ -", file=sys.stderr)
        return 2
    token = secrets.token_urlsafe(32)
    lines = ["[[token]]", f'name = "{args.name}"', f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"']
    if args.days is not None:
        lines.append(f"expires = {(datetime.now(UTC) + timedelta(days=args.days)).strftime('%Y-%m-%dT%H:%M:%SZ')}")
    if args.read_only:
        lines.append("read_only = true")
    for limit in ("max_sessions", "max_state_bytes", "max_timesteps_per_second"):
        value = getattr(args, limit)
        if value is not None:
            lines.append(f"{limit} = {value}")
    entry = "\n".join(lines) + "\n"
    if args.file is None:
        print(entry, file=sys.stderr)
    else:
        try:
            with expecting(args.file, "a file of tokens, or a name for one in a folder that is there"):
                before = args.file.read_text() if args.file.exists() else ""
                tomllib.loads(f"{before}\n{entry}")
                with args.file.open("a") as file:
                    file.write(f"\n{entry}")
        except ValueError as exc:  # tomllib.TOMLDecodeError, UnicodeDecodeError
            print(f"dnc token: {args.file} is no file of tokens, and stays as it is: {exc}", file=sys.stderr)
            return 1
    print(token)
    return 0


def days(text: str) -> int:
    value = count(text)
    if value > MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{value}; expected at most {MOST_DAYS}, or none at all: for ever")
    return value


def rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}; expected a number above 0")
    return value
