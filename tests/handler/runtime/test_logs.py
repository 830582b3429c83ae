"""Lines of the log, for programs and for people."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from dnc_serve.handler.runtime.logs import configure_logs, for_people, pass_on


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def logged(stream: io.StringIO) -> str:
    configure_logs("info", stream)
    logging.getLogger("dnc_serve.x").warning("the worker ended", extra={"pid": 7})
    return stream.getvalue()


def test_programs_get_json() -> None:
    line = json.loads(logged(io.StringIO()))
    assert (line["level"], line["logger"], line["message"], line["pid"]) == (
        "warning", "dnc_serve.x", "the worker ended", 7,
    )  # fmt: skip


def test_people_get_words_and_colours_only_if_they_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert logged(Terminal()).endswith(" warning\033[0m  the worker ended  pid=7\n")
    monkeypatch.setenv("NO_COLOR", "1")
    assert logged(Terminal()).endswith(" warning  the worker ended  pid=7\n")
    assert "\033" not in logged(Terminal())


def test_what_other_processes_logged_looks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stderr", terminal)
    pass_on({"level": "info", "logger": "java", "message": "no time", "exception": "Trace\n  back"}, "info")
    assert terminal.getvalue() == "info  no time\nTrace\n  back\n"


def test_a_line_has_the_local_time() -> None:
    line = {"time": "2026-01-02T03:04:05.678+00:00", "level": "info", "message": "m"}
    assert re.fullmatch(r"\d\d:04:05 info  m", for_people(line, colours=True))
