"""`dnc demo [copy|recall|graph|underground|crash]`: what a session is told by one process is asked for by another."""

import argparse
import sys
from dataclasses import fields
from typing import Any

from dnc_serve.client.cli.child_server import ServerFailed
from dnc_serve.client.cli.connection import add_connection, settings
from dnc_serve.client.cli.demos import DemoFailed, copy, crash, graph, recall, underground
from dnc_serve.client.cli.files import reason
from dnc_serve.client.cli.parser import path

HELP = "start a server, let a session remember something, and ask for it from another process"
DEMOS = {"copy": copy, "recall": recall, "graph": graph, "underground": underground, "crash": crash}


def configure(parser: argparse.ArgumentParser) -> None:
    """All demos' flags; those that are not given are left out of the result."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.argument_default = argparse.SUPPRESS
    parser.epilog = f"graph:\n{graph.DETAILS}"
    parser.add_argument("demo", nargs="?", choices=tuple(DEMOS), default="copy", help="which one (copy)")
    parser.add_argument("--seed", type=int, help="copy, recall, crash: for the same bits again")
    parser.add_argument("--plot", type=path, metavar="FILE", help="recall, graph: a picture of what was found where")
    parser.add_argument("--model", metavar="MODEL", help="another model of that task (the bundled one); crash: any")
    parser.add_argument("--runtime", choices=("torchserve", "plain"), help="of a server that is started (torchserve)")
    for name, demo in DEMOS.items():
        demo.configure(parser.add_argument_group(name, demo.HELP))
    add_connection(parser, "graph: a server that runs already", "one is started")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 if all that was asked for came back, 1 if not, 2 for wrong usage."""
    given = vars(args).copy()
    demo = DEMOS[given.pop("demo")]
    try:
        if (connection := _connection(given)) is not None:
            given["target"] = connection
        known = {field.name for field in fields(demo.Options)}
        for name in given:
            if name not in known:
                raise ValueError(f"--{name.replace('_', '-')} is no flag of dnc demo {args.demo}")
        code: int = demo.run(demo.Options(**given))
    except ValueError as exc:
        return _refuse(exc, 2)
    except ImportError as exc:
        return _refuse(f"{exc}; it needs more: pip install 'dnc-serve[serve]'", 1)
    except (DemoFailed, ServerFailed, OSError) as exc:
        return _refuse(exc, 1)
    return code


def _connection(given: dict[str, Any]) -> dict[str, Any] | None:
    """Takes the flags of a connection out of those that were given; None if no server was named."""
    parser = argparse.ArgumentParser(add_help=False)
    add_connection(parser)
    defaults = vars(parser.parse_args([]))
    flags = argparse.Namespace(**{name: given.pop(name, default) for name, default in defaults.items()})
    named = [name for name, default in defaults.items() if getattr(flags, name) != default]
    if not named:
        return None
    if not flags.target:
        raise ValueError(f"--{named[0].replace('_', '-')} says how to reach a server; expected --target too")
    return settings(flags)


def _refuse(why: Exception | str, code: int) -> int:
    print(f"dnc demo: {why if isinstance(why, str) else reason(why)}", file=sys.stderr)
    return code
