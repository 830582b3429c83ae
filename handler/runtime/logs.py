"""Logs as JSON, one object a line: time, level, logger, message, and whatever was given as `extra`."""

import contextlib
import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One record as one line of JSON."""

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
        return json.dumps(line, default=str, ensure_ascii=False)


def configure_logs(level: str, stream: TextIO | None = None) -> None:
    """Sends our own logs of at least this level, and others' warnings, to the stream (standard error).

    What others log at lower levels is left out: TorchServe's worker logs several lines for each call.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("dnc_serve").setLevel(level.upper())


def pass_on(line: Mapping[str, Any], least_level: str) -> None:
    """Repeats on standard error what another process logged, if it is of that level at least."""
    levels = logging.getLevelNamesMapping()
    if levels.get(str(line.get("level")).upper(), logging.INFO) >= levels[least_level.upper()]:
        with contextlib.suppress(OSError):  # whoever read the log has gone; TorchServe must not wait for it
            sys.stderr.write(json.dumps(line, default=str, ensure_ascii=False) + "\n")
            sys.stderr.flush()
