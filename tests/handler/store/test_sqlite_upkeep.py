"""Commits beside the upkeep of the SQLite files, whatever becomes of its syncs."""

import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dnc_serve.handler.store import sqlite_upkeep
from dnc_serve.handler.store.contract import Append
from dnc_serve.handler.store.sqlite import SQLiteStore
from tests.programs import program

# For each kind of moment to commit in: what hung, whether a commit went through meanwhile, and which log there is then.
PROGRAM = """
import os, sys, threading
from pathlib import Path
from dnc_serve.handler.store import sqlite_upkeep
from dnc_serve.handler.store.contract import Append, Begin, Head, Record
from dnc_serve.handler.store.sqlite import SQLiteStore

state_dir, reached, go = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
store = SQLiteStore(state_dir)
store.open()
store.commit([Begin(Head("a", 7, "d", "", 1.0, 1.0, 0, 0, 0))])
ordinal = 0

def commit():
    global ordinal
    ordinal += 1
    store.commit([Append(Record("a", 7, ordinal, ordinal, 0, 1.0, bytes(500)))])

def sync():
    store._writer.log_bytes += sqlite_upkeep.CHECKPOINT_BYTES + 1
    store.sync()
    os.write(queue, b"done\\n")

commit()
queue, bytes_ = os.open(reached, os.O_RDWR), os.open(go, os.O_RDWR)
os.environ["REACHED"], os.environ["GO"] = reached, go
for where in ("sessions.db-wal", "sessions.db", "nowhere"):
    thread = threading.Thread(target=sync)
    thread.start()
    with open(queue, closefd=False) as names:
        while (name := names.readline().strip()) != "done":
            if name == where:
                commit()
            print(where, "committed" if name == where else "hung", name, flush=True)
            os.write(bytes_, b"!")
    thread.join()
    print("log", (state_dir / "sessions.db-wal").read_bytes()[16:24].hex())
del os.environ["GO"]
store.commit([Append(Record("a", 7, ordinal + 1, ordinal + 1, 0, 1.0, bytes(500)))])
print("records", sum(1 for _ in store.records("a", 7, 0)) - ordinal)
store.close()
"""


@pytest.fixture
def holding(tmp_path: Path) -> dict[str, str]:
    """The environment of a program whose syncs may be held up."""
    compiler = program("cc", "gcc")
    library = tmp_path / "hold_syncs.so"
    source = Path(__file__).with_name("hold_syncs.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return os.environ | {"LD_PRELOAD": library.name, "LD_LIBRARY_PATH": str(tmp_path)}


def test_commits_wait_for_no_sync_of_a_checkpoint(tmp_path, holding):
    """They go through while each of its syncs hangs, of the log and of the file; and where none came, the log begins
    anew afterwards."""
    fifos = [tmp_path / "reached", tmp_path / "go"]
    for queue in fifos:
        os.mkfifo(queue)
    program = [sys.executable, "-c", PROGRAM, tmp_path / "state", *fifos]
    done = subprocess.run(program, env=holding, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "sessions.db-wal committed sessions.db-wal" in lines
    assert "sessions.db committed sessions.db" in lines
    first, second, third = (line for line in lines if line.startswith("log"))
    assert first == second, "there was no moment in which the log could begin anew"
    assert third != second, "the log did not begin anew"
    assert lines[-1] == "records 1"


class Busy:
    """A connection that checkpoints while commits come in, behind each checkpoint or during it."""

    def __init__(self, store: SQLiteStore, commit: Callable[[], None], during: bool) -> None:
        self._connection, self._reader = store._files.checkpointer, store._files.reader
        self._commit, self._during = commit, during

    def execute(self, statement: str) -> sqlite3.Cursor:
        if not statement.endswith("(PASSIVE)"):
            return self._connection.execute(statement)
        if self._during:  # what is committed after a reader has begun is not moved before it ends
            self._reader.execute("BEGIN")
            self._reader.execute("SELECT count(*) FROM sessions").fetchone()
            self._commit()
        cursor = self._connection.execute(statement)
        if self._during:
            self._reader.execute("COMMIT")
        else:
            self._commit()
        return cursor

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize(("during", "at_least", "at_most"), [(False, 1, 2), (True, 6, sqlite_upkeep.LOG_AT_MOST + 1)])
def test_a_log_stays_bounded_whenever_commits_come(tmp_path, writes, monkeypatch, during, at_least, at_most):
    """Where none leaves a moment to begin it anew, they wait at last."""
    unit = 1 << 18
    monkeypatch.setattr(sqlite_upkeep, "CHECKPOINT_BYTES", unit)
    store = SQLiteStore(tmp_path / "state")
    store.open()
    try:
        sessions = writes(store)
        sessions.begin("a")
        ordinals = itertools.count(1)
        store._files.checkpointer = Busy(store, lambda: sessions.append("a", next(ordinals)), during)
        log, sizes = tmp_path / "state" / "sessions.db-wal", []
        for _ in range(300):
            assert store.commit([Append(sessions.record("a", next(ordinals), body=os.urandom(20_000)))]) == [None]
            store.sync()
            sizes.append(log.stat().st_size)
        assert at_least * unit < max(sizes) < at_most * unit
        assert sessions.ordinals("a") == list(range(1, next(ordinals)))
    finally:
        store.close()
