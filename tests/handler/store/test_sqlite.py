"""What only SQLite has to do: files that are cut, torn, full, locked, flipped or deleted."""

import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store import sqlite_upkeep
from dnc_serve.handler.store.contract import Append, Begin, End, Prune, Rejected, StoreRefused
from dnc_serve.handler.store.schema import MIGRATIONS
from dnc_serve.handler.store.sqlite import RETRY_S, SQLiteStore
from tests.folders import memory_folder

BLOCK = 4096  # what a disk writes as a whole, or not


@pytest.fixture
def folder() -> Iterator[Path]:
    """Thousands of stores are opened in it."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def opened() -> Iterator[Callable[[Path], SQLiteStore]]:
    """Opens stores, and closes them after the test."""
    stores = []

    def open_at(state_dir: Path) -> SQLiteStore:
        store = SQLiteStore(state_dir)
        store.open()
        stores.append(store)
        return store

    yield open_at
    for store in stores:
        store.close()


@pytest.fixture
def store(folder, opened) -> SQLiteStore:
    return opened(folder / "state")


@pytest.fixture
def sessions(store, writes):
    return writes(store)


def files_of(state_dir: Path) -> tuple[bytes, bytes]:
    return (state_dir / "sessions.db").read_bytes(), (state_dir / "sessions.db-wal").read_bytes()


def put_files(state_dir: Path, database: bytes, log: bytes) -> Path:
    shutil.rmtree(state_dir, ignore_errors=True)
    state_dir.mkdir()
    (state_dir / "sessions.db").write_bytes(database)
    (state_dir / "sessions.db-wal").write_bytes(log)
    return state_dir


def ordinals_in(state_dir: Path, session_id: str = "a") -> list[int]:
    store = SQLiteStore(state_dir)
    store.open()
    try:
        return [record.ordinal for record in store.records(session_id, 7, 0)]
    finally:
        store.close()


def wait_to_retry() -> None:
    time.sleep(RETRY_S + 0.05)


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.long)])
def test_a_log_cut_anywhere_in_its_last_records_opens_as_the_commits_before(folder, store, sessions, step):
    sessions.begin("a")
    ends = []
    for ordinal in range(1, 7):
        sessions.append("a", ordinal)
        ends.append(len(files_of(folder / "state")[1]))
    database, log = files_of(folder / "state")
    assert len(log) == ends[-1]
    # Anywhere in the last two, where each ends, and some of the others.
    around = [end + off for end in ends[-3:] for off in (-1, 0, 1) if end + off <= len(log)]
    cuts = sorted({*range(0, ends[-3], 997), *range(ends[-3], ends[-1] + 1, step), *around})
    for cut in cuts:
        whole = sum(end <= cut for end in ends)
        found = ordinals_in(put_files(folder / "cut", database, log[:cut]))
        assert found == list(range(1, whole + 1)), f"cut at {cut} of {len(log)}"


def torn(before: bytes, after: bytes, chance: random.Random) -> bytes:
    """Of the blocks written since a sync, a power loss keeps any."""
    length = chance.choice([len(before), len(after), chance.randint(len(before), max(len(before), len(after)))])
    blocks = []
    for start in range(0, length, BLOCK):
        old, new = before[start : start + BLOCK], after[start : start + BLOCK]
        kept = chance.choice([old, new]).ljust(min(BLOCK, length - start), b"\0")
        blocks.append(kept[: length - start])
    return b"".join(blocks)


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(8, 200))])
def test_a_power_loss_takes_nothing_that_was_synced(folder, store, sessions, seed):
    """Any of the blocks since the last sync may be missing, also where the log is written over from its start."""
    chance = random.Random(seed)
    sessions.begin("a")
    store.sync()
    ordinal = 0
    if seed % 2:
        for ordinal in range(1, 60):
            sessions.append("a", ordinal)
        store._writer.log_bytes = 1 << 40
        store.sync()
        ordinal += 1
        sessions.append("a", ordinal)  # begins the log anew
    for _ in range(chance.randint(0, 12)):
        ordinal += 1
        sessions.append("a", ordinal)
    store.sync()
    synced = ordinal
    before = files_of(folder / "state")
    for _ in range(chance.randint(1, 12)):
        ordinal += 1
        sessions.append("a", ordinal)
    after = files_of(folder / "state")
    for _ in range(10):
        database, log = (torn(old, new, chance) for old, new in zip(before, after, strict=True))
        found = ordinals_in(put_files(folder / "torn", database, log))
        assert found == list(range(1, len(found) + 1))
        assert synced <= len(found) <= ordinal


def test_a_failed_sync_loses_nothing_while_the_process_lives(folder, store, sessions, monkeypatch):
    """The page cache throws away what it could not write, as Linux does."""
    sessions.begin("a", records=3)
    store.sync()
    _, synced_log = files_of(folder / "state")
    sessions.append("a", 4, 5, 6)
    sync_file = os.fdatasync

    def fail(descriptor: int) -> None:
        log = folder / "state" / "sessions.db-wal"
        with log.open("r+b") as stream:
            stream.seek(len(synced_log))
            stream.write(bytes(log.stat().st_size - len(synced_log)))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StoreUnavailable, match="Input/output error"):
        store.sync()
    for refused in (store.sync, lambda: store.commit([Append(sessions.record("a", 7))]), lambda: store.head("a")):
        with pytest.raises(StoreUnavailable):
            refused()
    wait_to_retry()
    with pytest.raises(StoreUnavailable):  # the medium still fails
        store.commit([Append(sessions.record("a", 7))])
    monkeypatch.setattr(os, "fdatasync", sync_file)
    wait_to_retry()
    sessions.append("a", 7)
    store.sync()
    assert sessions.ordinals("a") == [1, 2, 3, 4, 5, 6, 7]
    assert ordinals_in(put_files(folder / "copy", *files_of(folder / "state"))) == [1, 2, 3, 4, 5, 6, 7]


class Limited:
    """Files of this process can't grow beyond what they have, and a little."""

    def __init__(self, state_dir: Path) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = (state_dir / "sessions.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50_000, self._before[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


class Filled:
    """A file takes what space the file system has."""

    def __init__(self, state_dir: Path) -> None:
        self._ballast = state_dir.parent / "ballast"
        space = os.statvfs(state_dir)
        self._ballast.write_bytes(bytes(space.f_bavail * space.f_bsize - 50_000))

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture(params=["file size limit", "full file system"])
def shortage(request, tmp_path, opened) -> Iterator[tuple[Path, type]]:
    """A state folder, and what makes it run out of space."""
    if request.param == "file size limit":
        yield tmp_path / "state", Limited
        return
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], capture_output=True, text=True)
    if mount.returncode != 0:
        pytest.skip(f"only root may mount a small file system: {mount.stderr.strip()}")
    try:
        yield small / "state", Filled
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def test_a_full_disk_loses_nothing_acknowledged_and_heals(shortage, opened, writes):
    state_dir, make_short = shortage
    store = opened(state_dir)
    sessions = writes(store)
    sessions.begin("a", records=5)
    store.sync()
    body = os.urandom(9_000)
    acknowledged = 5
    short = make_short(state_dir)
    try:
        with pytest.raises(StoreUnavailable):
            while acknowledged < 100:
                store.commit([Append(sessions.record("a", acknowledged + 1, body=body))])
                acknowledged += 1
        with pytest.raises(StoreUnavailable):
            store.commit([Append(sessions.record("a", acknowledged + 1, body=body))])
    finally:
        short.free()
    wait_to_retry()
    assert sessions.ordinals("a") == list(range(1, acknowledged + 1))
    sessions.append("a", acknowledged + 1)
    store.sync()
    store.close()
    assert ordinals_in(state_dir) == list(range(1, acknowledged + 2))


def test_kill_9_loses_no_commit_that_returned(folder, opened):
    program = """
import sys
from pathlib import Path
from dnc_serve.handler.store.contract import Append, Begin, Head, Record
from dnc_serve.handler.store.sqlite import SQLiteStore
store = SQLiteStore(Path(sys.argv[1]))
store.open()
store.commit([Begin(Head("a", 7, "d", "", 1.0, 1.0, 0, 0, 0))])
ordinal = 0
while True:
    ordinal += 1
    store.commit([Append(Record("a", 7, ordinal, ordinal, 0, 1.0, bytes(500)))])
    print(ordinal, flush=True)
    if ordinal % 50 == 0:
        store._writer.log_bytes = 1 << 40
        store.sync()
"""
    for round_ in range(3):
        state_dir = folder / f"killed-{round_}"
        with subprocess.Popen([sys.executable, "-c", program, state_dir], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "1\n"
            if round_ == 0:
                with pytest.raises(StoreRefused, match=rf"{state_dir}.*process id {child.pid}\b"):
                    opened(state_dir)
            while int(child.stdout.readline()) < 40 * (round_ + 1):
                pass
            child.send_signal(signal.SIGKILL)
            acknowledged = int((child.stdout.read().split() or [40 * (round_ + 1)])[-1])
        found = ordinals_in(state_dir)
        assert found == list(range(1, len(found) + 1))
        assert acknowledged <= len(found) <= acknowledged + 1


def test_a_folder_has_one_owner(folder, store, opened):
    with pytest.raises(StoreRefused, match=f"process id {os.getpid()}"):
        opened(folder / "state")
    store.close()
    opened(folder / "state")


def test_a_newer_schema_is_refused(folder, store, opened):
    store.close()
    with sqlite3.connect(folder / "state" / "sessions.db") as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StoreRefused, match=f"schema version {len(MIGRATIONS) + 1}, written by a newer dnc-serve"):
        opened(folder / "state")


def test_an_older_schema_is_migrated_once_or_not_at_all(folder, store, sessions):
    sessions.begin("a", records=3)
    store.close()

    def half_done(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE sessions RENAME COLUMN owner TO token_name")
        raise sqlite3.OperationalError("no more")

    def add_index(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE INDEX sessions_by_end ON sessions (ended_at)")

    with pytest.raises(StoreUnavailable, match="no more"):
        SQLiteStore(folder / "state", (*MIGRATIONS, half_done)).open()
    for _ in range(2):
        migrated = SQLiteStore(folder / "state", (*MIGRATIONS, add_index))
        migrated.open()
        assert [record.ordinal for record in migrated.records("a", 7, 0)] == [1, 2, 3]
        migrated.close()
    with sqlite3.connect(folder / "state" / "sessions.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        assert connection.execute("SELECT owner FROM sessions").fetchall() == [("ann",)]


def test_one_flipped_bit_is_noticed_or_harmless(folder, store, sessions):
    """A session is as it was, or shorter, or missing, or refused. Bodies have checksums of the journal's own."""
    heads = {f"s{number}": sessions.begin(f"s{number}", records=8) for number in range(6)}
    store._writer.log_bytes = 1 << 40
    store.sync()
    for name in heads:
        sessions.append(name, 9, 10)
    database, log = files_of(folder / "state")
    chance = random.Random(5)
    refused = shorter = 0
    for _ in range(150):
        images = [bytearray(database), bytearray(log)]
        image = images[chance.random() < 0.3]
        image[chance.randrange(len(image))] ^= 1 << chance.randrange(8)
        flipped = SQLiteStore(put_files(folder / "flipped", *map(bytes, images)))
        try:
            flipped.open()
            for name, first in heads.items():
                head = flipped.head(name)
                if head is None:
                    shorter += 1
                    continue
                assert replace(head, last_used_at=0, position=0, experience=0, ordinal=0) == replace(
                    first, last_used_at=0
                )
                records = [record._replace(body=b"") for record in flipped.records(name, 7, 0)]
                assert records == [
                    sessions.record(name, ordinal)._replace(body=b"") for ordinal in range(1, len(records) + 1)
                ]
                shorter += len(records) < 10
                if records and head.ordinal == len(records):
                    assert head.position == records[-1].position
        except (StoreUnavailable, StoreRefused):
            refused += 1
        finally:
            flipped.close()
    assert refused > 0
    assert shorter > 0


def test_a_lost_record_is_not_passed_over(folder, store, sessions, opened):
    sessions.begin("a", records=6)
    sessions.begin("b", records=2)
    store.close()
    with sqlite3.connect(folder / "state" / "sessions.db") as connection:
        connection.execute("UPDATE records SET position = position + 1 WHERE ordinal = 3")
    store = opened(folder / "state")
    assert [record.ordinal for record in store.records("a", 7, 0)] == [1, 2]
    assert store.head("a").ordinal >= 6, "whoever counts the records must find that some are missing"
    assert [record.ordinal for record in store.records("b", 7, 0)] == [1, 2]


def test_log_and_file_stay_bounded(folder, store, sessions):
    """Also while somebody holds iterators that were never finished."""
    sessions.begin("a")
    sessions.begin("b", records=1000)
    started = [store.records("b", 7, 0), store.heads()]
    for iterator in started:
        next(iterator)
    body = os.urandom(100_000)
    log = folder / "state" / "sessions.db-wal"
    for ordinal in range(1, 801):
        assert store.commit([Append(sessions.record("a", ordinal, body=body)), Prune("a", 7, ordinal - 300)])
        store.sync()
        assert log.stat().st_size < 2 * sqlite_upkeep.CHECKPOINT_BYTES
    full = (folder / "state" / "sessions.db").stat().st_size
    assert 30_000_000 < full < 80_000_000
    assert store.commit([End("a", 7, "deleted", 1.0), End("b", 7, "deleted", 1.0)]) == [None, None]
    for _ in range(200):
        store.sync()
    store._writer.log_bytes = 1 << 40
    store.sync()
    assert (folder / "state" / "sessions.db").stat().st_size < full / 2


def test_commits_go_on_while_the_log_moves(store, sessions):
    sessions.begin("a")
    done = threading.Event()

    def sync() -> None:
        while not done.is_set():
            store._writer.log_bytes = 1 << 40
            store.sync()

    thread = threading.Thread(target=sync)
    thread.start()
    try:
        for ordinal in range(1, 1001):
            sessions.append("a", ordinal)
    finally:
        done.set()
        thread.join()
    assert sessions.ordinals("a") == list(range(1, 1001))


def test_a_file_that_somebody_else_locks_is_unavailable_for_as_long(folder, store, sessions):
    sessions.begin("a")
    other = sqlite3.connect(folder / "state" / "sessions.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        store.commit([Append(sessions.record("a", 1))])
    other.execute("ROLLBACK")
    other.close()
    sessions.append("a", 1)
    assert sessions.ordinals("a") == [1]


def test_deleted_files_are_noticed(folder, store, sessions):
    sessions.begin("a")
    for path in (folder / "state").glob("sessions.db*"):
        path.unlink()
    with pytest.raises(StoreUnavailable, match="deleted"):
        store.sync()
    wait_to_retry()
    with pytest.raises(StoreUnavailable):
        store.commit([Append(sessions.record("a", 1))])


def test_a_file_that_is_no_database_is_refused(folder, opened):
    (folder / "other").mkdir()
    (folder / "other" / "sessions.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnavailable, match="not a database"):
        opened(folder / "other")


def test_a_session_whose_mutations_fail_half_way_is_not_changed(store, sessions):
    sessions.begin("a", records=2)
    outcomes = store.commit(
        [
            Append(sessions.record("a", 3)),
            Begin(sessions.head("b")),
            Append(sessions.record("a", 4)._replace(body=[1, 2])),  # no column can hold it
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [Rejected, type(None), Rejected]
    assert sessions.ordinals("a") == [1, 2]
    assert store.head("b") == sessions.head("b")
    sessions.append("a", 3)
    assert sessions.ordinals("a") == [1, 2, 3]


def killed(store_folder: Path, copy: Path) -> Path:
    """What a server that was killed just now would leave."""
    return put_files(copy, *files_of(store_folder))


def test_the_numbers_of_what_was_deleted_are_not_believed_of_what_comes_later(folder, store, sessions, monkeypatch):
    monkeypatch.setattr(sqlite_upkeep, "SETTLE_RECORDS", 1)
    monkeypatch.setattr(sqlite_upkeep, "_SWEEP_BYTES", 10_000)
    sessions.begin("a", records=20)
    store.sync()
    assert store.commit([End("a", 7, "deleted", 1.0)]) == [None]
    store.sync()
    assert store._all("SELECT count(*) FROM records") == [(0,)]
    store.close()
    store.open()
    sessions.begin("b", records=3)
    assert ordinals_in(killed(folder / "state", folder / "killed"), "b") == [1, 2, 3]


def test_a_session_does_not_inherit_records_that_are_not_deleted_yet(folder, store, sessions, opened):
    sessions.begin("a", records=1)
    sessions.begin("b", records=3)
    assert store.commit([End("b", 7, "deleted", 1.0)]) == [None]
    assert store.forget_tombstones(2.0, 0) == 1
    store = opened(killed(folder / "state", folder / "killed"))
    assert store.commit([Begin(sessions.head("c"))]) == [None]
    store = opened(killed(folder / "killed", folder / "killed again"))
    assert store.head("c") == sessions.head("c")


def test_only_what_came_last_is_read_at_a_start(folder, store, sessions, opened, monkeypatch):
    monkeypatch.setattr(sqlite_upkeep, "SETTLE_RECORDS", 1000)
    for number in range(30):
        sessions.begin(f"idle{number}", records=2)
    sessions.begin("a", records=960)
    store.sync()
    sessions.append("a", 961, 962)
    after_a_kill = opened(killed(folder / "state", folder / "killed"))
    assert after_a_kill._writer.sessions.standings.keys() == {"a"}
    assert after_a_kill.head("a") == store.head("a")
    assert after_a_kill.head("idle7") == store.head("idle7")
    store.close()
    store.open()
    assert store._writer.sessions.standings == {}
    assert store.head("a") == after_a_kill.head("a")


def test_a_record_that_was_lost_last_stays_lost(folder, store, sessions, opened):
    """However often the store is opened since: the session must not end before it."""
    sessions.begin("a", records=5)
    store.close()
    store.open()
    sessions.append("a", 6)
    state_dir = killed(folder / "state", folder / "killed")
    with sqlite3.connect(state_dir / "sessions.db") as connection:
        connection.execute("UPDATE records SET position = position + 1 WHERE ordinal = 6")
    for _ in range(3):
        damaged = opened(state_dir)
        assert damaged.head("a").ordinal == 6
        assert [record.ordinal for record in damaged.records("a", 7, 0)] == [1, 2, 3, 4, 5]
        damaged.close()


def test_what_lies_behind_a_lost_record_is_found_from_a_snapshot_on(folder, store, sessions):
    sessions.begin("a", records=9)
    sessions.keep("a", 5)
    store.close()
    with sqlite3.connect(folder / "state" / "sessions.db") as connection:
        connection.execute("UPDATE records SET previous = previous + 1 WHERE ordinal = 3")
    store.open()
    assert sessions.ordinals("a", after=5) == [6, 7, 8, 9]
    assert sessions.ordinals("a") == sessions.ordinals("a", up_to=2) == [1, 2]


@pytest.fixture
def steps_of(store) -> Callable[[Callable[[], object]], int]:
    """How many steps of SQLite's machine a call takes."""

    def steps_of(call: Callable[[], object]) -> int:
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        for connection in (store._files.reader, store._files.writer):
            connection.set_progress_handler(count, 1)
        try:
            call()
        finally:
            for connection in (store._files.reader, store._files.writer):
                connection.set_progress_handler(None, 1)
        return steps

    return steps_of


def test_a_session_costs_the_same_among_many(store, sessions, steps_of):
    """Its next record, its snapshots, its way back, and what of it may be pruned."""

    def costs(session_id: str, ordinal: int) -> list[int]:
        sessions.begin(session_id, records=ordinal)
        sessions.keep(session_id, 2, 4, ordinal)
        return [
            steps_of(lambda: sessions.append(session_id, ordinal + 1, ordinal + 2)),
            steps_of(lambda: sessions.ordinals(session_id, after=ordinal)),
            steps_of(lambda: sessions.keep(session_id, ordinal + 2)),
            steps_of(lambda: store.prunable(1e9, 0)),
            steps_of(lambda: store.commit([Prune(session_id, 7, ordinal)])),
        ]

    costs("first", 8)  # reads the schema
    alone = costs("a", 8)
    for number in range(300):
        sessions.begin(f"idle{number}", records=3)
        sessions.keep(f"idle{number}", 3)
    assert all(among <= 1.1 * before for among, before in zip(costs("b", 300), alone, strict=True))


def test_the_dead_are_deleted_in_pieces_and_none_is_left(folder, store, sessions, steps_of, opened):
    """At a cost that does not depend on how many there are; a kill in the middle changes nothing."""
    for number in range(1, 4):
        sessions.begin(f"s{number}")
    sessions.begin("a")
    for ordinal in range(1, 1201):
        names = ("s1", "s2", "s3", "a")
        assert set(store.commit([Append(sessions.record(name, ordinal)) for name in names])) == {None}
    sessions.keep("s3", 600, 900)
    ends = [End("s1", 7, "deleted", 1.0), End("s2", 7, "deleted", 1.0), Prune("s3", 7, 600)]
    assert steps_of(lambda: store.commit(ends)) < 5000
    left, costs = [4800], []
    while left[-1] > 1800:
        costs.append(steps_of(store.sync))
        left += store._all("SELECT count(*) FROM records")[0]
        assert 0 < left[-2] - left[-1] <= 256
        if len(left) == 6:
            store.close()
            store.open()
    assert max(costs) < 1.5 * min(costs[:-1])
    assert left[-1] == 1800
    assert store._all("SELECT count(*) FROM garbage") == [(0,)]
    assert sessions.ordinals("a") == list(range(1, 1201))
    assert sessions.ordinals("s3") == list(range(601, 1201))
