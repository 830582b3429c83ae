"""Why a child or the worker did not start, read from what they printed."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

JAVA = "java"  # what Java prints outside of its log
MODEL_LOG = "MODEL_LOG"  # what the worker prints: TorchServe's name for it
# `torch.cuda.OutOfMemoryError: …`, `java.io.IOException: …`: an exception as both languages print one.
_EXCEPTION = re.compile(r"(?:Exception in thread \S+ )?((?:[\w$]+\.)*[\w$]*(?:Error|Exception|SystemExit)(?::.*)?)$")


def first_cause(lines: Iterable[Mapping[str, Any]]) -> str:
    """The true cause in one line; empty if nothing was printed.

    An exception that ended Java comes first, then the first one of the worker's: when the import of a handler fails,
    TorchServe tries one of its own of that name and reports that one as missing, so that later ones mislead. Failing
    both, it is the last error of the log.
    """
    lines = list(lines)
    printed = [str(line["message"]) for line in lines if line["logger"] == JAVA]
    for text in (*printed, *_of_worker(lines)):
        if found := _EXCEPTION.match(text):
            return found[1]
    for line in reversed(lines):
        if line["level"] in ("error", "fatal"):
            return f"{line['message']} {_first_line(line.get('exception', ''))}".strip()
    return str(lines[-1]["message"]) if lines else ""


def _of_worker(lines: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for line in lines:
        if line["logger"] == MODEL_LOG:
            yield str(line["message"])
        elif line["logger"] == "root":  # Python's, once the worker logs as JSON
            yield from str(line.get("exception", "")).splitlines()


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]
