"""What every store does; each test runs on SQLite and on a real Redis."""

import threading
from dataclasses import replace

import pytest

from dnc_serve.handler.store.contract import Append, Begin, End, Fenced, Keep, Prune, Rejected, SnapshotInfo

LARGEST = (1 << 64) - 1


def test_a_new_store_is_empty(reopenable):
    store = reopenable.store
    assert store.head("a") is None
    assert list(store.heads()) == []
    assert list(store.records("a", 7, 0)) == []
    assert store.snapshots("a", 7) == []
    assert store.snapshot("a", 7, 0) is None
    assert store.prunable(1e9, 1 << 40) == []
    assert store.size_bytes() == 0


def test_a_session_comes_back_as_it_was_written(reopenable, sessions):
    head = sessions.begin("a", LARGEST, digest="d" * 64, owner="an owner", created_at=1764000000.123456)
    assert reopenable.store.head("a") == head
    record = sessions.record("a", 1, LARGEST)._replace(body=bytes(range(256)) * 9, position=1 << 40)
    assert reopenable.store.commit([Append(record)]) == [None]
    expected = replace(head, position=1 << 40, experience=0, ordinal=1, last_used_at=record.at)
    for store in reopenable.before_and_after():
        assert list(store.records("a", LARGEST, 0)) == [record]
        assert store.head("a") == expected
        assert list(store.heads()) == [expected]


def test_records_come_in_order_and_by_range(reopenable, sessions):
    sessions.begin("a", records=600)
    sessions.begin("b", records=3)
    for _ in reopenable.before_and_after():
        assert sessions.ordinals("a") == list(range(1, 601))
        assert sessions.ordinals("a", after=250, up_to=520) == list(range(251, 521))
        assert sessions.ordinals("a", after=600) == []
        assert sessions.ordinals("a", after=0, up_to=0) == []
        assert sessions.ordinals("a", incarnation=8) == []
        assert sessions.ordinals("b") == [1, 2, 3]


def test_a_record_replaces_what_stood_from_its_ordinal_on(reopenable, sessions):
    sessions.begin("a", records=5)
    sessions.keep("a", 2, 4)
    size = reopenable.store.size_bytes()
    other = sessions.record("a", 3, body=b"another")
    assert reopenable.store.commit([Append(other)]) == [None]
    for store in reopenable.before_and_after():
        assert [r.body for r in store.records("a", 7, 1)] == [sessions.record("a", 2).body, b"another"]
        assert store.head("a").ordinal == 3
        assert store.head("a").position == other.position
        assert [info.ordinal for info in store.snapshots("a", 7)] == [2]
        assert store.size_bytes() == size - 3 * 100 + len(b"another") - 500


def test_a_record_that_leaves_a_gap_is_refused(sessions):
    sessions.begin("a", records=2)
    assert isinstance(sessions.store.commit([Append(sessions.record("a", 4))])[0], Fenced)
    assert sessions.ordinals("a") == [1, 2]


def test_outcomes_are_one_for_each_mutation_in_order(sessions):
    sessions.begin("a", records=1)
    sessions.acquire("never begun")
    outcomes = sessions.store.commit(
        [
            Append(sessions.record("a", 2)),
            Append(sessions.record("never begun", 1)),
            Append(sessions.record("a", 3)),
            Append(sessions.record("a", 4, incarnation=8)),
            Keep(sessions.snapshot("a", 3)),
            Keep(sessions.snapshot("a", 3, incarnation=8)),
            Prune("a", 7, 2),
        ]
    )
    assert [isinstance(outcome, Fenced) for outcome in outcomes] == [False, True, False, True, False, True, False]
    assert sessions.ordinals("a") == [3]
    assert sessions.store.commit([]) == []


def test_a_session_that_begins_replaces_what_stood_under_its_id(reopenable, sessions):
    sessions.begin("a", records=4)
    sessions.keep("a", 4)
    head = sessions.head("a", 8, position=40, experience=2)
    snapshot = replace(sessions.snapshot("a", 0, 8), position=40, experience=2)
    assert reopenable.store.commit([Begin(head, snapshot)]) == [None]
    for store in reopenable.before_and_after():
        assert store.head("a") == head
        assert list(store.records("a", 7, 0)) == list(store.records("a", 8, 0)) == []
        assert store.snapshots("a", 7) == []
        assert store.snapshot("a", 8, 0) == snapshot
        assert store.size_bytes() == len(snapshot.state)


def test_a_fork_may_begin_at_a_later_ordinal(reopenable, sessions):
    sessions.begin("fork", ordinal=9, position=36)
    sessions.append("fork", 10, 11)
    reopenable.again()
    assert sessions.ordinals("fork") == [10, 11]
    assert sessions.store.head("fork").ordinal == 11


def test_begin_and_end_in_one_commit_apply_in_order(sessions):
    sessions.acquire("a")
    outcomes = sessions.store.commit(
        [
            Begin(sessions.head("a")),
            Append(sessions.record("a", 1)),
            End("a", 7, "deleted", 55.0),
            Begin(sessions.head("a", 8)),
            Append(sessions.record("a", 1, 8)),
            Append(sessions.record("a", 1, 7)),
        ]
    )
    assert [isinstance(outcome, Fenced) for outcome in outcomes] == [False] * 5 + [True]
    assert sessions.store.head("a").incarnation == 8
    assert sessions.ordinals("a", 8) == [1]


def test_an_ended_session_leaves_a_tombstone(reopenable, sessions):
    sessions.begin("a", records=3)
    sessions.keep("a", 3)
    before = sessions.store.head("a")
    assert sessions.store.commit([End("a", 7, "deleted", 200.5)]) == [None]
    for store in reopenable.before_and_after():
        assert store.head("a") == replace(before, ended="deleted", ended_at=200.5)
        assert list(store.records("a", 7, 0)) == []
        assert store.snapshots("a", 7) == []
        assert store.size_bytes() == 0
        assert store.prunable(1e9, 1 << 40) == []
    # Ending twice changes nothing, and nothing goes on.
    sessions.acquire("a")
    assert reopenable.store.commit([End("a", 7, "expired", 300.0)]) == [None]
    assert reopenable.store.head("a").ended == "deleted"
    assert isinstance(reopenable.store.commit([Append(sessions.record("a", 4))])[0], Fenced)
    assert isinstance(reopenable.store.commit([End("a", 8, "deleted", 300.0)])[0], Fenced)


def test_snapshots_are_listed_newest_first_and_replaced(reopenable, sessions):
    sessions.begin("a", records=6)
    sessions.keep("a", 2, 6, 4)
    assert sessions.store.commit([Keep(sessions.snapshot("a", 4, size=900))]) == [None]
    for store in reopenable.before_and_after():
        assert store.snapshots("a", 7) == [
            SnapshotInfo(6, 24, 2, 106.5, 500),
            SnapshotInfo(4, 16, 1, 104.5, 900),
            SnapshotInfo(2, 8, 0, 102.5, 500),
        ]
        assert store.snapshot("a", 7, 6) == sessions.snapshot("a", 6)
        assert store.snapshot("a", 7, 5) is None
        assert store.snapshot("a", 8, 6) is None
        assert store.size_bytes() == 6 * 100 + 1900


def test_a_snapshot_stands_in_for_others(reopenable, sessions):
    sessions.begin("a", records=6)
    sessions.keep("a", 1, 2, 4)
    assert sessions.store.commit([Keep(sessions.snapshot("a", 6), instead_of=(2, 4, 5))]) == [None]
    assert isinstance(sessions.store.commit([Keep(sessions.snapshot("a", 6, 8), instead_of=(1,))])[0], Fenced)
    for store in reopenable.before_and_after():
        assert [info.ordinal for info in store.snapshots("a", 7)] == [6, 1]
        assert store.size_bytes() == 6 * 100 + 2 * 500


def test_pruning_keeps_the_newest_and_where_the_session_stands(reopenable, sessions):
    sessions.begin("a", records=8)
    sessions.keep("a", 3, 5, 8)
    head = sessions.store.head("a")
    assert sessions.store.commit([Prune("a", 7, 5)]) == [None]
    for _ in reopenable.before_and_after():
        assert sessions.ordinals("a") == [6, 7, 8]
        assert sessions.ordinals("a", after=7) == [8]
        assert [info.ordinal for info in sessions.store.snapshots("a", 7)] == [8, 5]
        assert sessions.store.head("a") == head
        assert sessions.store.size_bytes() == 3 * 100 + 1000
    sessions.acquire("a")
    assert sessions.store.commit([Prune("a", 7, 8), Prune("a", 7, 2)]) == [None, None]
    for _ in reopenable.before_and_after():
        assert sessions.ordinals("a") == []
        assert [info.ordinal for info in sessions.store.snapshots("a", 7)] == [8]
        assert sessions.store.head("a") == head
    sessions.acquire("a")
    sessions.append("a", 9)
    assert sessions.ordinals("a") == [9]


def test_a_commit_may_change_the_model_that_a_session_belongs_to(reopenable, sessions):
    sessions.begin("a", records=1)
    assert sessions.store.commit([Append(sessions.record("a", 2), digest="d2"), Append(sessions.record("a", 3))])
    for store in reopenable.before_and_after():
        assert store.head("a").digest == "d2"
        assert store.head("a").ordinal == 3


def test_what_is_old_or_too_much_may_be_pruned_but_for_two_snapshots(reopenable, sessions):
    sessions.begin("a", records=8)
    sessions.keep("a", 2, 4, 6, 8)
    sessions.begin("b", records=3)
    sessions.keep("b", 1)
    sessions.begin("c", records=6)
    sessions.keep("c", 3, 5)
    for store in reopenable.before_and_after():
        for session_id in "abc":
            sessions.acquire(session_id)
        assert store.prunable(before=0.0, excess_bytes=0) == []
        assert store.prunable(before=103.0, excess_bytes=0) == [Prune("a", 7, 2)]
        assert store.prunable(before=104.0, excess_bytes=0) == [Prune("a", 7, 2), Prune("c", 7, 3)]
        assert store.prunable(before=0.0, excess_bytes=1) == [Prune("a", 7, 2)]
        assert store.prunable(before=0.0, excess_bytes=1 << 40) == [Prune("a", 7, 6), Prune("c", 7, 3)]
        assert store.prunable(before=1e9, excess_bytes=0) == [Prune("a", 7, 6), Prune("c", 7, 3)]
    assert reopenable.store.commit([Prune("a", 7, 4), Prune("c", 7, 3)]) == [None, None]
    assert sessions.ordinals("a") == [5, 6, 7, 8]
    for store in reopenable.before_and_after():
        for session_id in "abc":
            sessions.acquire(session_id)
        assert store.prunable(before=1e9, excess_bytes=0) == [Prune("a", 7, 6)]
    sessions.append("a", 9)
    assert reopenable.store.commit([Keep(sessions.snapshot("a", 9), instead_of=(8,))]) == [None]
    assert reopenable.store.prunable(before=1e9, excess_bytes=0) == [Prune("a", 7, 6)]
    assert reopenable.store.commit([Append(sessions.record("a", 9))]) == [None]  # again: its snapshot goes
    assert reopenable.store.prunable(before=1e9, excess_bytes=0) == []
    assert reopenable.store.commit([End("a", 7, "deleted", 1.0), End("c", 7, "deleted", 1.0)]) == [None, None]
    assert reopenable.store.prunable(before=1e9, excess_bytes=1 << 40) == []


def test_old_and_surplus_tombstones_are_forgotten(reopenable, sessions):
    for number in range(6):
        sessions.begin(f"s{number}", records=1)
        if number:
            assert sessions.store.commit([End(f"s{number}", 7, "deleted", 100.0 + number)]) == [None]
    assert sessions.store.forget_tombstones(before=102.5, at_most=10) == 2
    assert {head.session_id for head in sessions.store.heads()} == {"s0", "s3", "s4", "s5"}
    assert sessions.store.forget_tombstones(before=0.0, at_most=1) == 2
    for store in reopenable.before_and_after():
        assert {head.session_id for head in store.heads()} == {"s0", "s5"}
        assert store.head("s1") is None
        assert store.head("s0").ordinal == 1
    sessions.begin("s1", 11, records=2)
    assert sessions.ordinals("s1", 11) == [1, 2]


def test_many_sessions_are_listed_once(reopenable, sessions):
    mutations = []
    for number in range(700):
        sessions.acquire(f"s{number}")
        mutations.append(Begin(sessions.head(f"s{number}", number + 1)))
    assert sessions.store.commit(mutations) == [None] * 700
    heads = list(reopenable.again().heads())
    assert sorted(head.incarnation for head in heads) == list(range(1, 701))


def test_readers_beside_the_writer_see_whole_prefixes(reopenable, sessions):
    """Four threads read, and prune and end goes on, while one writes."""
    sessions.begin("a")
    sessions.begin("b")
    failures: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            records = list(reopenable.store.records("a", 7, 0))
            ordinals = [record.ordinal for record in records]
            if ordinals and ordinals != list(range(ordinals[0], ordinals[0] + len(ordinals))):
                failures.append(f"gap in {ordinals}")
            if any(record.body != bytes([record.ordinal % 256]) * 100 for record in records):
                failures.append("a body of another record")
            head = reopenable.store.head("a")
            if records and (head is None or head.ordinal < records[-1].ordinal):
                failures.append(f"the head {head} is behind {records[-1].ordinal}")
            for info in reopenable.store.snapshots("a", 7):
                snapshot = reopenable.store.snapshot("a", 7, info.ordinal)
                if snapshot is not None and snapshot.state != bytes([info.ordinal % 256]) * 500:
                    failures.append("a state of another snapshot")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for ordinal in range(1, 301):
            mutations = [Append(sessions.record("a", ordinal)), Append(sessions.record("b", ordinal))]
            if ordinal % 20 == 0:
                mutations += [Keep(sessions.snapshot("a", ordinal)), Prune("a", 7, ordinal - 30)]
            assert set(sessions.store.commit(mutations)) == {None}
            if ordinal % 10 == 0:
                sessions.store.sync()
    finally:
        done.set()
        for reader in readers:
            reader.join(20)
    assert failures == []
    assert sessions.ordinals("b") == list(range(1, 301))


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_bodies_of_any_size(reopenable, sessions, size):
    sessions.begin("a")
    body = bytes(size)
    assert sessions.store.commit([Append(sessions.record("a", 1, body=body))]) == [None]
    assert [record.body for record in reopenable.again().records("a", 7, 0)] == [body]


def test_what_can_not_be_written_fails_its_own_session_alone(request, reopenable, sessions):
    for session_id in ("a", "bad", "z"):
        sessions.begin(session_id, records=1)
    if "redis" in request.node.name:
        server = request.getfixturevalue("shared_redis")
        with server.client() as client:  # the records of a session are no list any more
            client.delete("dnc:{bad}:marks")
            client.set("dnc:{bad}:marks", "x")
        bad = sessions.record("bad", 2)
    else:
        bad = sessions.record("bad", 2)._replace(position=1 << 63)
    mutations = [Append(sessions.record("a", 2)), Append(bad), Keep(sessions.snapshot("bad", 1))]
    outcomes = sessions.store.commit([*mutations, Append(sessions.record("z", 2)), Begin(sessions.head("a", 8))])
    assert [type(outcome) for outcome in outcomes] == [type(None), Rejected, Rejected, type(None), type(None)]
    for store in reopenable.before_and_after():
        assert store.head("a").incarnation == 8
        assert sessions.ordinals("z") == [1, 2]
        assert store.snapshots("bad", 7) == []
