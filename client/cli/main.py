"""`dnc COMMAND …`: finds the command's module and runs it.

A command is a module of this folder with `HELP`, `configure(parser)` and `run(args) -> exit code`, or a `Command` of a
module with several.
Only the one that is asked for is imported, so that `dnc step` needs neither torch nor TorchServe.
"""

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

from dnc_serve import __version__
from dnc_serve.client.cli.files import reason
from dnc_serve.client.cli.parser import Command, Parser, did_you_mean
from dnc_serve.client.errors import DncError

COMMANDS = (
    "serve", "demo", "step", "reset", "dump", "sessions", "fork", "delete", "migrate", "model", "models", "load",
    "unload", "watch", "record", "train", "export", "archive", "bench", "doctor", "health", "token", "completion",
)  # fmt: skip
MODULES = {
    "reset": "sessions",
    "fork": "sessions",
    "delete": "sessions",
    "migrate": "sessions",
    "models": "model",
    "load": "model",
    "unload": "model",
    "health": "doctor",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 for success, 1 for failure, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command not in installed():
        return _overview(arguments)
    help, configure, run = _command(command)
    parser = Parser(prog=f"dnc {command}", description=help)
    try:
        configure(parser)
    except ImportError as error:  # of `dnc serve`, where only the client is installed
        print(f"dnc {command}: {error}; it needs more: pip install 'dnc-serve[serve]'", file=sys.stderr)
        return 1
    args = parser.parse_args(arguments[1:])
    try:
        code = run(args)
        sys.stdout.flush()
    except DncError as error:
        print(f"dnc {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"dnc {command}: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read the output has gone; nothing more can be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"dnc {command}: {reason(error)}", file=sys.stderr)
        return 1
    return code


def installed() -> tuple[str, ...]:
    """The commands whose modules are there."""
    return tuple(name for name in COMMANDS if importlib.util.find_spec(_module(name)) is not None)


def all_commands(configured: bool = True) -> argparse.ArgumentParser:
    """The command lines of all commands in one, as completion and documentation read them.

    Unless they are to be configured, which imports all that they need, each has only its name and its help.
    """
    parser = argparse.ArgumentParser(
        prog="dnc", description="Serve, use and train sequence models that remember.", add_help=False
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name in installed():
        help, configure, _ = _command(name)
        command = commands.add_parser(name, help=help, description=help)
        if configured:
            with contextlib.suppress(ImportError):  # of what isn't installed, its name is all
                configure(command)
    return parser


def _overview(arguments: list[str]) -> int:
    """What `dnc --help` and `dnc --version` print; a wrong command is said so."""
    if arguments == ["--version"]:
        print(f"dnc {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        text = all_commands(configured=False).format_help()
        print(text, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    meant = did_you_mean(arguments[0], (*installed(), "--version", "--help"))
    print(f"dnc: there is no command {arguments[0]!r}{meant}; see `dnc --help`", file=sys.stderr)
    return 2


def _module(command: str) -> str:
    return f"{__package__}.{MODULES.get(command, command)}"


def _command(name: str) -> Command:
    module = importlib.import_module(_module(name))
    if isinstance(command := getattr(module, name.upper(), None), Command):
        return command
    return Command(module.HELP, module.configure, module.run)
