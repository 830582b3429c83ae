"""A process that `dnc serve` starts: in a process session of its own, with what it prints as log records."""

import contextlib
import json
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnc_serve.handler.runtime.causes import first_cause

TAIL_LINES = 400

Line = dict[str, Any]
OnLine = Callable[["Child", Line], None]
OnEnd = Callable[["Child"], None]


class StartFailed(Exception):
    """The server can't start; the message is the true cause."""


class Child:
    """One process, from its start to its end.

    In a thread, `on_line` is called for each record that `parse` makes of a printed line, and `on_end` when the process
    has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        run_folder: Path,
        environment: Mapping[str, str],
        parse: Callable[[str], Line],
        on_line: OnLine,
        on_end: OnEnd,
    ) -> None:
        self._tail: deque[Line] = deque(maxlen=TAIL_LINES)
        self._parse = parse
        self._on_line = on_line
        self._on_end = on_end
        # In a process session of its own: Ctrl-C at the terminal must reach the drain, not the child.
        self._process = subprocess.Popen(
            command,
            cwd=run_folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name="dnc-child-log", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def terminate(self, patience_s: float) -> None:
        """Ends it: asked first, killed when the patience is over."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(max(0.0, patience_s))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()

    def cause(self) -> str:
        """Why it did not start, in one line."""
        if not self.alive:
            self._reader.join(timeout=1.0)  # its last words
        return first_cause(self._tail) or f"it ended without a word, {self.how_it_ended()}"

    def how_it_ended(self) -> str:
        """Its exit code, or the signal that killed it."""
        code = self._process.poll()
        if code is None:
            return "still running"
        return f"killed by signal {-code}" if code < 0 else f"with exit code {code}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            if text.strip():
                line = self._parse(text.rstrip("\n"))
                self._tail.append(line)
                self._on_line(self, line)
        self._process.wait()
        self._on_end(self)


def own_record(text: str) -> Line | None:
    """The log record that a printed line is, if one of our own processes wrote it."""
    if text.startswith('{"time"'):
        with contextlib.suppress(ValueError):
            return dict(json.loads(text))
    return None
