"""`dnc completion`: what a shell reads to complete the commands, their flags and the names of files."""

import argparse
from collections.abc import Iterator

import shtab

from dnc_serve.client.cli.parser import path

HELP = "print what completes `dnc` in a shell"
SHELLS = ("bash", "zsh", "fish")
EPILOG = """\
bash:  dnc completion bash > ~/.local/share/bash-completion/completions/dnc
zsh:   dnc completion zsh > ~/.zfunc/_dnc    (a folder of $fpath, before compinit)
fish:  dnc completion fish > ~/.config/fish/completions/dnc.fish
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("shell", choices=SHELLS, help="whose")


def run(args: argparse.Namespace) -> int:
    from dnc_serve.client.cli.main import all_commands

    parser = all_commands()
    for action in _actions(parser):
        if action.type is path or "FILE" in str(action.metavar):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of the parser, and of those of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for named in action._choices_actions:
                command = action.choices[named.dest]
                command.description = named.help  # a line of a menu, not the paragraph of its own help
                yield from _actions(command)
