"""Any mutations in any order, beside upkeep, restarts and kills: SQLite says what a dictionary says."""

import random
import shutil
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from dnc_serve.handler.store import sqlite_upkeep
from dnc_serve.handler.store.contract import (
    Append,
    Begin,
    End,
    Fenced,
    Head,
    Keep,
    Mutation,
    Prune,
    Record,
    Snapshot,
    SnapshotInfo,
)
from dnc_serve.handler.store.sqlite import SQLiteStore

COMMITS = 120
IDS = "abcdef"


@dataclass
class Session:
    """What a store has to know of one."""

    head: Head
    pruned: int
    records: dict[int, Record] = field(default_factory=dict)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)

    def steps(self) -> list[int]:
        """Ordinals up to which it may be pruned, the oldest snapshot first."""
        steps = [ordinal for ordinal in sorted(self.snapshots)[:-1] if ordinal > self.pruned]
        return sorted(steps, key=lambda ordinal: self.snapshots[ordinal].at)


class Model:
    """A store of dictionaries."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}

    def apply(self, mutation: Mutation) -> bool:
        """Whether it goes on from what is there."""
        if isinstance(mutation, Begin):
            head, snapshot = mutation.head, mutation.snapshot
            session = self.sessions[head.session_id] = Session(head, head.ordinal)
            if snapshot is not None:
                session.snapshots[snapshot.ordinal] = snapshot
            return True
        whose = mutation.record if isinstance(mutation, Append) else mutation
        whose = mutation.snapshot if isinstance(mutation, Keep) else whose
        found = self.sessions.get(whose.session_id)
        if found is None or found.head.incarnation != whose.incarnation:
            return False
        if isinstance(mutation, Append):
            return not found.head.ended and self._append(found, mutation)
        if isinstance(mutation, Keep):
            if found.head.ended:
                return False
            for ordinal in mutation.instead_of:
                found.snapshots.pop(ordinal, None)
            found.snapshots[mutation.snapshot.ordinal] = mutation.snapshot
        elif isinstance(mutation, Prune):
            found.pruned = max(found.pruned, min(mutation.ordinal, found.head.ordinal))
            found.records = {one: record for one, record in found.records.items() if one > found.pruned}
            found.snapshots = {one: kept for one, kept in found.snapshots.items() if one >= mutation.ordinal}
        elif not found.head.ended:
            found.head = replace(found.head, ended=mutation.why, ended_at=mutation.at)
            found.pruned = found.head.ordinal
            found.records, found.snapshots = {}, {}
        return True

    def _append(self, session: Session, mutation: Append) -> bool:
        record, head = mutation.record, session.head
        if not session.pruned < record.ordinal <= head.ordinal + 1:
            return False
        for later in range(record.ordinal, head.ordinal + 1):
            session.records.pop(later, None)
        session.snapshots = {one: kept for one, kept in session.snapshots.items() if one < record.ordinal}
        session.records[record.ordinal] = record
        session.head = replace(
            head,
            digest=mutation.digest or head.digest,
            ordinal=record.ordinal,
            position=record.position,
            experience=record.experience,
            last_used_at=record.at,
        )
        return True


class Traffic:
    """Random mutations, most of which go on from where sessions stand."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = 1000.0

    def now(self) -> float:
        self.clock += 0.25
        return self.clock

    def mutation(self, model: Model) -> Mutation:
        chance = self.chance
        session_id = chance.choice(IDS)
        session = model.sessions.get(session_id)
        if session is None or chance.random() < 0.03:
            ordinal = chance.choice([0, 0, 9])
            head = Head(session_id, chance.getrandbits(64), "d", "ann", self.now(), self.clock, ordinal * 4, 0, ordinal)
            return Begin(head, self.snapshot(head, ordinal) if chance.random() < 0.4 else None)
        head = session.head
        incarnation = head.incarnation if chance.random() < 0.97 else 5
        kind = chance.random()
        if kind < 0.7:
            ordinal = head.ordinal + 1 if chance.random() < 0.93 else chance.randint(0, head.ordinal + 3)
            size = chance.choice([0, 10, 250, 9000])
            body = chance.randbytes(size)
            record = Record(session_id, incarnation, ordinal, ordinal * 4, ordinal // 9, self.now(), body)
            return Append(record, "other" if chance.random() < 0.02 else None)
        if kind < 0.85:
            ordinal = head.ordinal if chance.random() < 0.8 else chance.randint(session.pruned, head.ordinal)
            instead_of = tuple(chance.sample(sorted(session.snapshots), len(session.snapshots) // 3))
            return Keep(self.snapshot(replace(head, incarnation=incarnation), ordinal), instead_of)
        if kind < 0.97:
            steps = session.steps()
            ordinal = chance.choice(steps) if steps and chance.random() < 0.8 else chance.randint(0, head.ordinal + 1)
            return Prune(session_id, incarnation, ordinal)
        return End(session_id, incarnation, "deleted", self.now())

    def snapshot(self, head: Head, ordinal: int) -> Snapshot:
        state = self.chance.randbytes(self.chance.choice([0, 500, 9000]))
        return Snapshot(head.session_id, head.incarnation, ordinal, ordinal * 4, 0, self.now(), state)


def compare(store: SQLiteStore, model: Model) -> None:
    assert {head.session_id: head for head in store.heads()} == {one: s.head for one, s in model.sessions.items()}
    size = 0
    for session_id, session in model.sessions.items():
        head = session.head
        assert store.head(session_id) == head
        assert list(store.records(session_id, head.incarnation, 0)) == list(session.records.values())
        middle = (session.pruned + head.ordinal) // 2
        assert [record.ordinal for record in store.records(session_id, head.incarnation, middle - 2, middle)] == [
            ordinal for ordinal in session.records if middle - 2 < ordinal <= middle
        ]
        kept = [session.snapshots[ordinal] for ordinal in sorted(session.snapshots, reverse=True)]
        assert store.snapshots(session_id, head.incarnation) == [
            SnapshotInfo(one.ordinal, one.position, one.experience, one.at, len(one.state)) for one in kept
        ]
        assert [store.snapshot(session_id, head.incarnation, one.ordinal) for one in kept] == kept
        size += sum(len(record.body) for record in session.records.values()) + sum(len(one.state) for one in kept)
    assert store.size_bytes() == size
    assert {(one.session_id, one.ordinal) for one in store.prunable(1e9, 0)} == {
        (session_id, session.steps()[-1]) for session_id, session in model.sessions.items() if session.steps()
    }


@pytest.mark.parametrize("seed", range(12))
def test_any_mutations_beside_upkeep_restarts_and_kills(tmp_path: Path, monkeypatch, seed: int) -> None:
    monkeypatch.setattr(sqlite_upkeep, "SETTLE_RECORDS", 30)
    monkeypatch.setattr(sqlite_upkeep, "_KNOWN", 3)
    monkeypatch.setattr(sqlite_upkeep, "_ROWS", 5)
    monkeypatch.setattr(sqlite_upkeep, "_SWEEP_BYTES", 50_000)
    traffic, model = Traffic(seed), Model()
    folder = tmp_path / "0"
    store = SQLiteStore(folder)
    store.open()
    try:
        for number in range(COMMITS):
            mutations, expected = [], []
            for _ in range(traffic.chance.choice([1, 1, 2, 8])):
                mutations.append(traffic.mutation(model))
                expected.append(model.apply(mutations[-1]))
            outcomes = store.commit(mutations)
            assert [not isinstance(outcome, Fenced) for outcome in outcomes] == expected
            what = traffic.chance.random()
            if what < 0.4:
                store.sync()
            elif what > 0.97:
                ended = [session_id for session_id, session in model.sessions.items() if session.head.ended]
                assert store.forget_tombstones(1e9, 0) == len([model.sessions.pop(session_id) for session_id in ended])
            elif what < 0.45:  # kill -9, as far as the files are concerned
                killed, folder = folder, tmp_path / str(number + 1)
                shutil.copytree(killed, folder)
                (folder / "sessions.db-shm").unlink()
                store.close()
                store = SQLiteStore(folder)
                store.open()
            elif what < 0.5:
                store.close()
                store.open()
            if number % 10 == 0:
                compare(store, model)
        compare(store, model)
        monkeypatch.setattr(sqlite_upkeep, "_SWEEP_BYTES", 1)
        for _ in range(COMMITS):
            store.sync()
        compare(store, model)
    finally:
        store.close()
    with sqlite3.connect(folder / "sessions.db") as file:
        counts = [file.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("records", "garbage")]
        assert counts == [sum(len(session.records) for session in model.sessions.values()), 0], "rows nobody knows of"
        assert file.execute("SELECT count(*) FROM states").fetchone() == (
            sum(len(session.snapshots) for session in model.sessions.values()),
        )
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
