"""Logs: on a terminal lines for people; elsewhere JSON, one object a line: time, level, logger, message, and whatever
was given as `extra`."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ALWAYS = ("time", "level", "logger", "message", "exception")
_COLOURS = {"warning": "33", "error": "31", "critical": "31"}  # yellow and red, as ANSI numbers them


class Lines(logging.Formatter):
    """A record as a line of the stream."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _written(line, self._stream)


def configure_logs(level: str, stream: TextIO | None = None) -> None:
    """Sends our own logs of at least this level, and others' warnings, to the stream (standard error).

    What others log at lower levels is left out: TorchServe's worker logs several lines for each call.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines(handler.stream))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("dnc_serve").setLevel(level.upper())


def pass_on(line: Mapping[str, Any], least_level: str) -> None:
    """Repeats on standard error what another process logged, if it is of that level at least."""
    levels = logging.getLevelNamesMapping()
    if levels.get(str(line.get("level")).upper(), logging.INFO) >= levels[least_level.upper()]:
        with contextlib.suppress(OSError):  # whoever read the log has gone; TorchServe must not wait for it
            sys.stderr.write(_written(line, sys.stderr) + "\n")
            sys.stderr.flush()


def _written(line: Mapping[str, Any], stream: TextIO) -> str:
    if stream.isatty():
        return for_people(line, colours=not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")
    return json.dumps(line, default=str, ensure_ascii=False)


def for_people(line: Mapping[str, Any], *, colours: bool) -> str:
    """The local time, the level, the message, and what else is known, as NAME=VALUE."""
    level = str(line.get("level", ""))
    with contextlib.suppress(ValueError):  # of a line of others, that has no time
        level = f"{datetime.fromisoformat(str(line.get('time'))).astimezone():%H:%M:%S} {level}"
    if colours and (colour := _COLOURS.get(str(line.get("level")))):
        level = f"\033[{colour}m{level}\033[0m"
    others = "".join(f"  {name}={value}" for name, value in line.items() if name not in _ALWAYS)
    exception = f"\n{line['exception']}" if line.get("exception") else ""
    return f"{level}  {line.get('message', '')}{others}{exception}"
