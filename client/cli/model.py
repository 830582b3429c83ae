"""`dnc model`, `models`, `load` and `unload`: what a running server serves."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from dnc_serve.client.cli.connection import add_connection, connect
from dnc_serve.client.cli.parser import Command
from dnc_serve.client.info import ModelInfo

HELP = "tell which model a server serves, and how"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of several models (the default one)")
    parser.add_argument("--version", metavar="VERSION", help="one of several versions (that of new sessions)")
    parser.add_argument("--json", action="store_true", help="all that the server tells, as a JSON object")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    with connect(args) as client:
        model = client.model(args.name, args.version)
    print(json.dumps(asdict(model), indent=2) if args.json else "\n".join(_lines(model)))
    return 0


def _configure_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_connection(parser)


def _list_models(args: argparse.Namespace) -> int:
    with connect(args) as client:
        models = client.models()
        for summary in models:
            if args.json:
                print(json.dumps({**asdict(summary), "default": summary is models[0]}))
                continue
            model = client.model(summary.name, summary.version)
            default = "  (default)" if summary is models[0] else ""
            share = "" if summary.share is None else f"  {summary.share:.0%} of new sessions"
            shape = f"{model.inputs} → {model.outputs}, {model.state_bytes} bytes a session"
            print(f"{summary.name:<20} {summary.version:<8} {summary.digest[:12]}  {shape}{share}{default}")
    return 0


def _configure_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the model's name, which may be new")
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="as for `dnc serve --model`, on the server's machine; none for another share",
    )
    parser.add_argument("--version", metavar="VERSION", help="what it is called (one more than the highest)")
    parser.add_argument("--share", type=float, metavar="SHARE", help="of new sessions, 0 to 1 (all)")
    add_connection(parser)
    parser.set_defaults(timeout=600.0)  # a model may have to be compiled


def _load(args: argparse.Namespace) -> int:
    source = args.source
    if source is not None and Path(source).expanduser().exists():
        source = str(Path(source).expanduser().absolute())  # the server runs in another folder
    with connect(args) as client:
        loaded = client.load_model(args.name, source, args.version, share=args.share)
    print(f"model {loaded.name} version {loaded.version}, digest {loaded.digest[:12]}")
    return 0


def _configure_unload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("version", metavar="VERSION")
    parser.add_argument("--carry-over", action="store_true", help="its sessions go on with the version of new ones")
    add_connection(parser)
    parser.set_defaults(timeout=600.0)


def _unload(args: argparse.Namespace) -> int:
    with connect(args) as client:
        carried = client.unload_model(args.name, args.version, carry_over=args.carry_over)
    print(f"model {args.name} version {args.version} unloaded, {carried} sessions carried over")
    return 0


MODELS = Command("list the models that a server has", _configure_models, _list_models)
LOAD = Command("have a server serve a version of a model", _configure_load, _load)
UNLOAD = Command("have a server drop a version of a model", _configure_unload, _unload)


def _lines(model: ModelInfo) -> list[str]:
    facts = {
        "model": model.name + (f", trained for {model.task}" if model.task else ""),
        "version": model.version,
        "digest": model.digest,
        "timestep": f"{model.inputs} → {model.outputs}",
        "stepped by": f"{model.artifact} on {model.device}"
        + (f" ({model.artifact_note})" if model.artifact_note else ""),
        "durability": model.durability,
        "chunks": f"up to {model.chunk_timesteps()} timesteps, {model.max_in_flight_chunks} of a session under way",
        "server": f"dnc-serve {model.server_version}",
        "a session": f"{model.state_bytes} bytes:",
    }
    lines = [f"{what:<12}{fact}" for what, fact in facts.items()]
    for field in model.state:
        parts = f"{field.parts} × " if field.parts > 1 else ""
        experience = "  experience" if field.experience else ""
        lines.append(f"  {field.name:<20}{parts}{field.dtype} {list(field.shape)}{experience}")
    return lines
