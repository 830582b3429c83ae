"""`dnc bench`: how fast a server answers, by load."""

import argparse
import json
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial

from grpc import StatusCode
from grpc.aio import AioRpcError

from dnc_serve.client import Client, Internal
from dnc_serve.client.cli.child_server import ServerFailed
from dnc_serve.client.cli.connection import add_connection, credentials
from dnc_serve.client.cli.demos.server import serving
from dnc_serve.client.cli.inference_load import inference_load, inference_model
from dnc_serve.client.cli.load import LOADS, Figures, Server, Span, in_turns, median_figures, stream_load
from dnc_serve.client.cli.parser import count

HELP = "measure a server under the loads of many clients"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Puts each load on a server in turns, from this process; figures are medians over the rounds. The sessions "
        "that it makes are deleted again. A server that others use meanwhile serves them slower. The repository's "
        "bench/ measures more: beside an echo, other versions and other servers, and by the server's processor time. "
        "A --target that speaks Triton's protocol alone is measured in its messages, by the loads that these can put."
    )
    parser.add_argument(
        "--model", default="copy", help="what a server that is started serves, or another one is asked for (copy)"
    )
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="turns of everything (3)")
    parser.add_argument("--seconds", type=_positive, default=1.0, help="of each load in a round (1)")
    parser.add_argument("--quick", action="store_true", help="one short round: whether it runs, not how fast")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_connection(parser, "a server that runs already", "one is started")


def run(args: argparse.Namespace) -> int:
    if args.target and len(args.target) > 1:
        print(f"dnc bench: --target is {' and '.join(args.target)}; expected one server", file=sys.stderr)
        return 2
    token, tls = credentials(args)
    rounds, seconds = (1, 0.1) if args.quick else (args.rounds, args.seconds)
    try:
        with ExitStack() as stack:
            address = args.target[0] if args.target else stack.enter_context(serving(args.model))
            server = Server(address, 0, token, tls)
            measures, model = _measures(server, args.model, Span(seconds, seconds / 4), args.timeout)
            turns = in_turns(measures, rounds, told)
    except ImportError as exc:
        print(f"dnc bench: {exc}; to start a server needs more: pip install 'dnc-serve[serve]'", file=sys.stderr)
        return 1
    except (ServerFailed, RuntimeError) as exc:
        print(f"dnc bench: {exc}", file=sys.stderr)
        return 1
    told("")
    figures = {name: median_figures([turn[name] for turn in turns]) for name in measures}
    if args.json:
        rows = {name: asdict(one) for name, one in figures.items()}
        print(json.dumps({**model, "rows": rows}))
        return 0
    print(f"{address}: {', '.join(model.values())}")
    print(f"{'':<50}{'p50 ms':>8}{'p99 ms':>8}{'timesteps/s':>13}")
    for name, one in figures.items():
        print(f"{name:<50}{one.p50_ms:8.2f}{one.p99_ms:8.2f}{one.timesteps_per_s:13,.0f}")
    return 0


def _measures(
    server: Server, name: str, span: Span, timeout_s: float
) -> tuple[Mapping[str, Callable[[], Figures]], dict[str, str]]:
    """The loads by their names, and what is known of the model."""
    try:
        with Client(server.address, token=server.token, tls=server.tls, timeout_s=timeout_s) as client:
            model = client.model()
    except Internal as exc:
        if not isinstance(exc.__cause__, AioRpcError) or exc.__cause__.code() is not StatusCode.UNIMPLEMENTED:
            raise
    else:
        server = replace(server, input_size=model.input_size)
        prefix = f"bench-{secrets.token_hex(4)}-"
        measures = {
            load_name: partial(stream_load, server, load, span, prefix, False) for load_name, load in LOADS.items()
        }
        return measures, {"model": model.name, "artifact": model.artifact, "device": model.device}
    other = inference_model(server, name)
    lone = {load_name: load for load_name, load in LOADS.items() if load.way == "lockstep"}
    measures = {load_name: partial(inference_load, server, other, load, span) for load_name, load in lone.items()}
    return measures, {"model": other.name, "platform": other.platform}


def told(line: str) -> None:
    """What is being done, on a terminal: each line in place of the one before."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}; expected more than 0")
    return value
