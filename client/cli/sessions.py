"""`dnc sessions`: which sessions there are; and their export and import."""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from dnc_serve.client.cli.connection import add_connection, add_session, connect
from dnc_serve.client.cli.files import replacing
from dnc_serve.client.cli.parser import path
from dnc_serve.client.info import SessionInfo

HELP = "list sessions, export one to a file or import it"


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="list|export|import", required=False)
    listing = actions.add_parser("list", help="list sessions; so does no action at all")
    export = actions.add_parser("export", help="save a session to a file")
    importing = actions.add_parser("import", help="take a session up from a file")
    add_session(export)
    export.add_argument("file", type=path, metavar="FILE.safetensors")
    add_session(importing, help="the id that it gets")
    importing.add_argument("file", type=path, metavar="FILE.safetensors")
    for each in (parser, listing):
        each.add_argument("--prefix", default="", help="only ids that begin so")
        each.add_argument("--json", action="store_true", help="one JSON object a line")
    for each in (parser, listing, export, importing):
        add_connection(each)


def run(args: argparse.Namespace) -> int:
    blob = args.file.read_bytes() if args.action == "import" else b""
    with connect(args) as client:
        if args.action == "export":
            with replacing(args.file) as beside:
                beside.write_bytes(client.session(args.session, create=False).export())
            print(args.file)
        elif args.action == "import":
            session = client.import_session(args.session, blob)
            print(f"session {session.id} at position {session.position}, experience {session.experience}")
        elif args.json:
            for info in client.sessions(args.prefix):
                print(json.dumps(asdict(info), default=_plain))
        else:
            _print_table(client.sessions(args.prefix))
    return 0


def _print_table(sessions: Iterator[SessionInfo]) -> None:
    first = next(sessions, None)  # if there is no answer, there is no table
    print(f"{'id':<24} {'position':>10} {'resets':>7} {'tier':<6} {'bytes':>9}  {'last used':<20}")
    for info in itertools.chain([] if first is None else [first], sessions):
        last_used = info.last_used.strftime("%Y-%m-%d %H:%M:%S")
        print(
            f"{info.id:<24} {info.position:>10} {info.experience:>7} {info.tier:<6} {info.state_bytes:>9}  {last_used}"
        )


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
