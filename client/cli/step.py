"""`dnc step`: timesteps from a file or a pipe through a session."""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from dnc_serve.client.arrays import Array
from dnc_serve.client.cli.connection import add_connection, add_model, add_session, connect, model_of
from dnc_serve.client.cli.parser import count, filled
from dnc_serve.client.cli.timesteps import STANDARD, BadFile, Source, output, write
from dnc_serve.client.client import Session

HELP = "send timesteps through a session and print its outputs"


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    parser.add_argument(
        "inputs", nargs="?", type=filled, default=STANDARD, metavar="FILE",
        help="CSV with one timestep a line, a header or none, or .npy [T, *shape]; standard input if left out",
    )  # fmt: skip
    parser.add_argument(
        "-o",
        "--output",
        type=filled,
        default=STANDARD,
        metavar="FILE",
        help="where outputs go, .npy or else CSV by its name; standard output, as the inputs are, if left out",
    )
    parser.add_argument("--reset-experience", action="store_true", help="zero the memory before the first timestep")
    parser.add_argument("--chunk", type=count, default=64, metavar="T", help="timesteps sent at once (64)")
    parser.add_argument(
        "--lockstep", action="store_true", help="answer each chunk before the next is read; with --chunk 1 for a dialog"
    )
    add_model(parser)
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    try:
        if Path(args.session).is_file() and not Path(args.inputs).is_file() and args.inputs != STANDARD:
            args.session, args.inputs = args.inputs, args.session  # the one that is a file can only be FILE
        source = Source(args.inputs)
        as_npy = args.output.endswith(".npy") or (args.output == STANDARD and source.is_npy)
        if as_npy and args.output == STANDARD and sys.stdout.isatty():
            print("dnc step: .npy is not for terminals; use -o FILE", file=sys.stderr)
            return 2
        with connect(args) as client, output(args.output) as begin:
            chunks = source.chunks(args.chunk, model_of(client, args.session, args.model).inputs)
            with client.session(args.session, model=args.model) as session:
                timesteps = write(_outputs(session, chunks, args), begin, as_npy)
            print(f"session {session.id}: {timesteps} timesteps, now at position {session.position}", file=sys.stderr)
    except BadFile as exc:
        print(f"dnc step: {exc}", file=sys.stderr)
        return 1
    return 0


def _outputs(session: Session, chunks: Iterator[Array], args: argparse.Namespace) -> Iterator[Array]:
    wrong: list[BadFile] = []

    def good() -> Iterator[Array]:
        """Those before a wrong one, whose outputs are to come first."""
        try:
            yield from chunks
        except BadFile as exc:
            wrong.append(exc)

    sent = good()
    if args.reset_experience:
        for first in itertools.islice(sent, 1):
            yield session.step(first, reset_experience=True)
    if args.lockstep:
        for chunk in sent:
            yield session.step(chunk)
    else:
        yield from session.stream(sent)
    if wrong:
        raise wrong[0]
