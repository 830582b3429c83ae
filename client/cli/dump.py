"""`dnc dump`: a look into a session's memory."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from dnc_serve.client.arrays import Array
from dnc_serve.client.axes import described
from dnc_serve.client.cli.connection import add_connection, add_session, connect
from dnc_serve.client.cli.files import replacing
from dnc_serve.client.cli.parser import path

HELP = "show, save or plot a session's memory"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Without --output and --plot, a line for each array. Its axes: N memory slots, W their numbers, R read heads, "
        "K write heads, D hidden layers of the controller with H units each, V numbers read, L memories (or "
        "controllers), S slots that a head of a sparse memory reads, Q links of a slot; an axis of one is left out."
    )
    add_session(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help="memory, link_matrix, … (all)")
    parser.add_argument("-o", "--output", type=path, metavar="FILE.npz", help="save the arrays")
    parser.add_argument("--plot", type=path, metavar="FILE", help="save heatmaps as .png or .svg")
    parser.add_argument("--position", type=int, metavar="P", help="as it was at an earlier position")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    if args.plot is not None and args.plot.suffix not in (".png", ".svg"):
        print(f"dnc dump: --plot is {args.plot}; expected a name that ends in .png or .svg", file=sys.stderr)
        return 2
    with connect(args) as client, client.session(args.session, create=False) as session:
        arrays = session.dump(args.names, args.position)
        position = session.position if args.position is None else args.position
        config = client.model(session.model, session.model_version).config
    if args.plot is not None and not arrays:
        print(
            f"dnc dump: session {args.session} at position {position} has nothing to plot: "
            "only a timestep gives it an interface, and it is new or was reset",
            file=sys.stderr,
        )
        return 1
    try:
        if args.output is not None:
            with replacing(args.output) as beside, beside.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            print(args.output)
        if args.plot is not None:
            from dnc_serve.client.plotting import save_heatmaps

            with replacing(args.plot) as beside:
                save_heatmaps(arrays, beside, f"session {args.session} at position {position}")
            print(args.plot)
    except ImportError as exc:
        print(f"dnc dump: {exc}", file=sys.stderr)
        return 1
    if args.output is None and args.plot is None:
        _summarise(arrays, config)
    return 0


def _summarise(arrays: Mapping[str, Array], config: Mapping[str, Any]) -> None:
    print(f"{'array':<18} {'shape':<20} {'least':>10} {'mean':>10} {'most':>10}")
    for name, array in arrays.items():
        shape = described(name, array.shape, config)
        print(f"{name:<18} {shape:<20} {array.min():>10.4g} {array.mean():>10.4g} {array.max():>10.4g}")
