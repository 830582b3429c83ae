"""`dnc delete`: the end of sessions."""

import argparse
import sys

from dnc_serve.client.cli.connection import add_connection, add_session, connect
from dnc_serve.client.errors import DncError

HELP = "end sessions"


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser, nargs="+")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
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
