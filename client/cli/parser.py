"""A command, and its command line."""

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn


class Command(NamedTuple):
    """What `dnc` can be asked for."""

    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Options may stand between arguments; a mistake is told in one line, with the option that may have been meant."""

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """As `dnc step SESSION --chunk 8 FILE`, which argparse refuses unless it is asked to intermix."""
        parse = self.parse_intermixed_args if self._subparsers is None else super().parse_args  # it can't do both
        parsed: argparse.Namespace = parse(args, namespace)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        unknown = re.findall(r"(--[^\s=]+)", message) if message.startswith("unrecognized") else []
        for option in unknown:
            message += did_you_mean(option, [*self._option_string_actions])
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """The one that it resembles, as a remark; nothing if there is none."""
    close = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def filled(text: str) -> str:
    """Some text, as the type of an argument: of a variable that isn't set, a shell makes an empty one."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}; expected some text")
    return text


def path(text: str) -> Path:
    """A path, as the type of an argument; an empty one would be the working folder."""
    return Path(filled(text))


def count(text: str) -> int:
    """A whole number from 1, as the type of an argument."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; expected at least 1")
    return value
