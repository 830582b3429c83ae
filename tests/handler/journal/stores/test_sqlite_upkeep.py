"""Commits beside the upkeep of the SQLite files, whatever becomes of its syncs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# For each kind of moment to commit in: what hung, whether a commit went through meanwhile, and which log there is then.
PROGRAM = """
import os, sys, threading
from pathlib import Path
from dnc_serve.handler.journal.stores import sqlite_upkeep
from dnc_serve.handler.journal.stores.contract import Append, Begin, Head, Record
from dnc_serve.handler.journal.stores.sqlite import SQLiteStore

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
    store._upkeep.log_bytes += sqlite_upkeep.CHECKPOINT_BYTES + 1
    store.sync()
    os.write(fifo, b"done\\n")

commit()
fifo, bytes_ = os.open(reached, os.O_RDWR), os.open(go, os.O_RDWR)
os.environ["REACHED"], os.environ["GO"] = reached, go
for where in ("sessions.db-wal", "sessions.db", "nowhere"):
    thread = threading.Thread(target=sync)
    thread.start()
    with open(fifo, closefd=False) as names:
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
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "hold_syncs.so"
    source = Path(__file__).with_name("hold_syncs.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return os.environ | {"LD_PRELOAD": str(library)}


def test_commits_wait_for_no_sync_of_a_checkpoint(tmp_path, holding):
    """They go through while each of its syncs hangs, of the log and of the file; and where none came, the log begins
    anew afterwards."""
    fifos = [tmp_path / "reached", tmp_path / "go"]
    for fifo in fifos:
        os.mkfifo(fifo)
    program = [sys.executable, "-c", PROGRAM, tmp_path / "state", *fifos]
    done = subprocess.run(program, env=holding, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "sessions.db-wal committed sessions.db-wal" in lines
    assert "sessions.db committed sessions.db" in lines
    first, second, third = (line for line in lines if line.startswith("log"))
    assert first == second, "there was no moment in which the log could begin anew"
    assert third != second, "the log did not begin anew"
    assert lines[-1] == "records 1"
