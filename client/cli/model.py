"""`dnc model` and `dnc models`: what a running server serves."""

import argparse
import json
from dataclasses import asdict

from dnc_serve.client.cli.connection import add_connection, connect
from dnc_serve.client.cli.parser import Command
from dnc_serve.client.info import ModelInfo

HELP = "tell which model a server serves, and how"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of several models (the default one)")
    parser.add_argument("--json", action="store_true", help="all that the server tells, as a JSON object")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    with connect(args) as client:
        model = client.model(args.name)
    print(json.dumps(asdict(model), indent=2) if args.json else "\n".join(_lines(model)))
    return 0


def _configure_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_connection(parser)


def _list_models(args: argparse.Namespace) -> int:
    with connect(args) as client:
        for number, summary in enumerate(client.models()):
            if args.json:
                print(json.dumps({**asdict(summary), "default": not number}))
                continue
            model = client.model(summary.name)
            default = "" if number else "  (default)"
            shape = f"{model.inputs} → {model.outputs}, {model.state_bytes} bytes a session"
            print(f"{summary.name:<20} {summary.digest[:12]}  {shape}{default}")
    return 0


MODELS = Command("list the models that a server has", _configure_models, _list_models)


def _lines(model: ModelInfo) -> list[str]:
    facts = {
        "model": model.name + (f", trained for {model.task}" if model.task else ""),
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
