"""`dnc reset`: a session forgets."""

import argparse

from dnc_serve.client.cli.connection import add_connection, add_session, connect

HELP = "reset a session's experience, or all of it"


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    parser.add_argument(
        "--scope", choices=("experience", "all"), default="experience",
        help="experience: the memory becomes zero, controller state and read vectors stay; all: as new (experience)",
    )  # fmt: skip
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    with connect(args) as client, client.session(args.session, create=False) as session:
        session.reset(args.scope)
        print(f"session {session.id} at position {session.position}, experience {session.experience}")
    return 0
