"""`dnc fork`: an independent copy of a session."""

import argparse

from dnc_serve.client.cli.connection import add_connection, add_session, connect

HELP = "copy a session, now or as it was"


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    parser.add_argument("fork", nargs="?", metavar="NEW_SESSION", help="the copy's id (a random one)")
    parser.add_argument("--position", type=int, metavar="P", help="as it was at an earlier position")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    with connect(args) as client, client.session(args.session, create=False) as session:
        fork = session.fork(args.fork, args.position)
        print(f"session {fork.id} at position {fork.position}, experience {fork.experience}")
    return 0
