"""`dnc sessions`, `reset`, `fork`, `migrate` and `delete`: which sessions there are, and what becomes of them."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from dnc_serve.client.cli.connection import add_connection, add_session, connect
from dnc_serve.client.cli.files import expecting, replacing
from dnc_serve.client.cli.parser import Command, path
from dnc_serve.client.client import Session
from dnc_serve.client.errors import DncError
from dnc_serve.client.info import SessionInfo


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="list|export|import", required=False)
    listing = actions.add_parser("list", help="list sessions; so does no action at all")
    export = actions.add_parser("export", help="save a session to a file")
    importing = actions.add_parser("import", help="take a session up from a file")
    add_session(export)
    add_session(importing, help="the id that it gets")
    for each in (export, importing):
        each.add_argument("file", type=path, metavar="FILE.safetensors")
    for each in (parser, listing):
        each.add_argument("--prefix", default="", help="only ids that begin so")
        each.add_argument("--model", metavar="NAME", help="only sessions of this model")
        each.add_argument("--json", action="store_true", help="one JSON object a line")
    for each in (parser, listing, export, importing):
        add_connection(each)


def _run(args: argparse.Namespace) -> int:
    blob = b""
    if args.action == "import":
        with expecting(args.file, "what `dnc sessions export` has written"):
            blob = args.file.read_bytes()
    with connect(args) as client:
        if args.action == "export":
            with replacing(args.file) as beside:
                beside.write_bytes(client.session(args.session, create=False).export())
            print(args.file)
        elif args.action == "import":
            _tell(client.import_session(args.session, blob))
        elif args.json:
            for info in client.sessions(args.prefix, model=args.model):
                print(json.dumps(asdict(info), default=_plain))
        else:
            _print_table(
                client.sessions(args.prefix, model=args.model),
                of_several=len({model.name for model in client.models()}) > 1,
            )
    return 0


def _print_table(sessions: Iterator[SessionInfo], of_several: bool) -> None:
    """`of_several` models: each line names its own."""
    first = next(sessions, None)  # if there is no answer, there is no table
    model = f" {'model':<12}" if of_several else ""
    print(f"{'id':<24}{model} {'position':>10} {'resets':>7} {'tier':<6} {'bytes':>9}  {'last used':<20}")
    for info in itertools.chain([] if first is None else [first], sessions):
        last_used = info.last_used.strftime("%Y-%m-%d %H:%M:%S")
        model = f" {info.model:<12}" if of_several else ""
        print(
            f"{info.id:<24}{model} {info.position:>10} {info.experience:>7} {info.tier:<6} {info.state_bytes:>9}  "
            f"{last_used}"
        )


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _tell(session: Session) -> None:
    print(f"session {session.id} at position {session.position}, experience {session.experience}")


def _configure_reset(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    parser.add_argument(
        "--scope", choices=("experience", "all"), default="experience",
        help="experience: the memory becomes zero, controller state and read vectors stay; all: as new (experience)",
    )  # fmt: skip
    add_connection(parser)


def _reset(args: argparse.Namespace) -> int:
    with connect(args) as client, client.session(args.session, create=False) as session:
        session.reset(args.scope)
        _tell(session)
    return 0


def _configure_fork(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    parser.add_argument("fork", nargs="?", metavar="NEW_SESSION", help="the copy's id (a random one)")
    parser.add_argument("--position", type=int, metavar="P", help="as it was at an earlier position")
    add_connection(parser)


def _fork(args: argparse.Namespace) -> int:
    with connect(args) as client, client.session(args.session, create=False) as session:
        _tell(session.fork(args.fork, args.position))
    return 0


def _configure_delete(parser: argparse.ArgumentParser) -> None:
    add_session(parser, nargs="+")
    add_connection(parser)


def _delete(args: argparse.Namespace) -> int:
    """Goes on with the others if one can't be deleted."""
    code = 0
    with connect(args) as client:
        for session_id in args.session:
            try:
                client.session(session_id, create=False).delete()
                print(f"session {session_id} deleted")
            except DncError as error:
                print(f"dnc delete: {error}", file=sys.stderr)
                code = 1
    return code


def _configure_migrate(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    parser.add_argument("--version", metavar="VERSION", help="the version to go on with (that of new sessions)")
    add_connection(parser)


def _migrate(args: argparse.Namespace) -> int:
    with connect(args) as client, client.session(args.session, create=False) as session:
        session.migrate(args.version)
        info = session.info()
    print(f"session {info.id} is of the model {info.model}, version {info.model_version}")
    return 0


SESSIONS = Command("list sessions, export one to a file or import it", _configure, _run)
RESET = Command("reset a session's experience, or all of it", _configure_reset, _reset)
FORK = Command("copy a session, now or as it was", _configure_fork, _fork)
MIGRATE = Command("go on with another version of a session's model", _configure_migrate, _migrate)
DELETE = Command("end sessions", _configure_delete, _delete)
