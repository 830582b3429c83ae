"""`dnc model`: what a running server serves."""

import argparse
import json
from dataclasses import asdict

from dnc_serve.client.cli.connection import add_connection, connect
from dnc_serve.client.info import ModelInfo

HELP = "tell which model a server serves, and how"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="all that the server tells, as a JSON object")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    with connect(args) as client:
        model = client.model()
    print(json.dumps(asdict(model), indent=2) if args.json else "\n".join(_lines(model)))
    return 0


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
