"""A state folder laid out for another number of workers: nothing of a session changes, wherever that is interrupted."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dnc_serve.handler.store import parts
from dnc_serve.handler.store.contract import End, Prune, StoreRefused
from dnc_serve.handler.store.sqlite import SQLiteStore
from dnc_serve.proto.workers import owner_of
from tests.folders import memory_folder
from tests.handler.door import open_door

# Ends itself, as if killed, right before the n-th change to any file.
DIES = """
import os, sys
from dnc_serve.handler.store import parts
from dnc_serve.handler.store.sqlite import SQLiteStore
left = int(sys.argv.pop(1))
def dying(change):
    def changed(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return change(*args, **kwargs)
    return changed
for name in ("commit", "sync", "forget", "close"):
    setattr(SQLiteStore, name, dying(getattr(SQLiteStore, name)))
parts._write_number = dying(parts._write_number)
parts.MOVED_SESSIONS = 3
parts.main(sys.argv[1:])
"""
NAMES = [f"s{number}" for number in range(12)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


def fill(folder: Path, writes: Callable[[SQLiteStore], Any]) -> None:
    """Sessions that were left in all the ways that there are."""
    store = SQLiteStore(folder)
    store.open()
    sessions = writes(store)
    for number, name in enumerate(NAMES):
        sessions.begin(name, incarnation=(1 << 64) - 1 if number == 1 else 7, owner=f"owner-{number % 2}")
    for name in NAMES[2:]:
        sessions.append(name, *range(1, 8))
        sessions.keep(name, 3, 5)
    store.commit([Prune(name, 7, 3) for name in NAMES[4:8]])
    store.commit([End(name, 7, "expired", 1234.5) for name in NAMES[8:10]])
    store.close()


def contents(folder: Path, workers: int) -> dict[str, Any]:
    """All that is known of each session, which is where its worker looks for it, and nowhere else."""
    found: dict[str, Any] = {}
    for worker in range(workers):
        store = SQLiteStore(parts.part_folder(folder, worker, workers))
        store.open()
        for head in store.heads():
            assert head.session_id not in found
            assert owner_of(head.session_id, workers) == worker
            records = list(store.records(head.session_id, head.incarnation, 0))
            snapshots = [
                store.snapshot(head.session_id, head.incarnation, info.ordinal)
                for info in store.snapshots(head.session_id, head.incarnation)
            ]
            found[head.session_id] = head, records, snapshots
        store.close()
    return found


def test_sessions_go_to_their_workers_and_back(folder: Path, writes: Any) -> None:
    fill(folder, writes)
    before = contents(folder, 1)
    assert sorted(before) == sorted(NAMES)
    for workers in (2, 3, 2, 8, 1):
        assert parts.move(folder, workers) > 0
        assert parts.number_of_parts(folder) == workers
        assert contents(folder, workers) == before
        assert parts.move(folder, workers) == 0


@pytest.mark.parametrize(("former", "workers"), [(1, 3), (3, 2), (2, 1)])
def test_a_move_that_was_killed_anywhere_is_made_again(folder: Path, writes: Any, former: int, workers: int) -> None:
    fill(folder / "whole", writes)
    before = contents(folder / "whole", 1)
    for changes in range(100):
        here = folder / f"{changes}"
        fill(here, writes)
        parts.move(here, former)
        killed = subprocess.run([sys.executable, "-c", DIES, str(changes), str(here), str(workers)], check=False)
        if killed.returncode == 0:
            break
        assert killed.returncode == 9
        if changes % 2:  # the next start may not have been the same
            parts.move(here, workers + 3)
        parts.move(here, workers)
        assert contents(here, workers) == before
    assert changes > 8
    assert contents(here, workers) == before


def test_lost_records_stay_lost(folder: Path, writes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that misses some must not look like one that ends before them."""
    fill(folder, writes)
    whole = SQLiteStore.records

    def records(store: SQLiteStore, session_id: str, *others: Any) -> Iterator[Any]:
        for record in whole(store, session_id, *others):
            if (session_id, record.ordinal) == (NAMES[3], 5):
                return
            yield record

    monkeypatch.setattr(SQLiteStore, "records", records)
    before = contents(folder, 1)
    parts.move(folder, 2)
    monkeypatch.undo()
    after = contents(folder, 2)
    head, left, snapshots = after.pop(NAMES[3])
    former, _, kept = before.pop(NAMES[3])
    assert (head, left, snapshots) == (former, [], kept)
    assert after == before


def test_parts_in_use_are_left_alone(folder: Path, writes: Any) -> None:
    fill(folder, writes)
    parts.move(folder, 2)
    store = SQLiteStore(parts.part_folder(folder, 1, 2))
    store.open()
    with pytest.raises(StoreRefused, match="in use by the server with process id"):
        parts.move(folder, 3)
    assert parts.number_of_parts(folder) == 2
    store.close()
    parts.move(folder, 3)
    assert sorted(contents(folder, 3)) == sorted(NAMES)


def test_the_hash_is_what_the_contract_says() -> None:
    """Clients in other languages compute it too, and sessions lie where it says: it never changes."""
    assert [owner_of(name, 4) for name in ("", "a", "patient-17", "sess\u00e4o", "x" * 128)] == [2, 0, 1, 3, 2]
    assert {owner_of(f"session-{number}", 1) for number in range(100)} == {0}
    counts = [0] * 5
    for number in range(5_000):
        name = f"session-{number}"
        counts[owner_of(name, 5)] += 1
        assert owner_of(name, 5) in (owner_of(name, 4), 4)  # another worker takes some, and moves no other
    assert min(counts) > 900


def test_a_server_refuses_a_folder_that_is_laid_out_for_other_workers(artifact_folder: Path, tmp_path: Path) -> None:
    parts.move(tmp_path, 2)
    said = "is laid out for 2 workers, expected 1"
    with pytest.raises(StoreRefused, match=said), open_door(artifact_folder, tmp_path):
        pass
