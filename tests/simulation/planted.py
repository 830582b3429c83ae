"""Mistakes that are made on purpose, one at a time, in the parts that decide: the simulation has to find each."""

from collections.abc import Callable
from typing import Any

from dnc_serve.handler.clock import Clock
from dnc_serve.handler.engine import ownership, recovery, snapshots
from dnc_serve.handler.engine.journal import Journal
from dnc_serve.handler.engine.lifecycle import Lifecycle
from dnc_serve.handler.engine.replies import Reply
from dnc_serve.handler.engine.session import Session, Verdict
from dnc_serve.handler.engine.session_table import SessionTable
from dnc_serve.handler.engine.write_ahead import WriteAhead

Plant = Callable[[Any], None]
"""Makes a mistake with the help of pytest's `monkeypatch`."""


def acknowledged_before_the_record(patch: Any) -> None:
    def write(self: Journal, mutations: Any, written: Any, synced: Any = None) -> None:
        written([None] * len(mutations))
        real(self, mutations, lambda outcomes: None, synced)

    real = Journal.write
    patch.setattr(Journal, "write", write)


def durable_before_the_sync(patch: Any) -> None:
    def write(self: Journal, mutations: Any, written: Any, synced: Any = None) -> None:
        def told(outcomes: Any) -> None:
            written(outcomes)
            if synced is not None:
                synced()

        real(self, mutations, told, synced)

    real = Journal.write
    patch.setattr(Journal, "write", write)


def reply_not_stored(patch: Any) -> None:
    patch.setattr(recovery, "find_reply", lambda *args: None)


def another_chunk_gets_the_reply(patch: Any) -> None:
    patch.setattr(Reply, "answers", lambda self, chunk: True)


def tombstone_dropped(patch: Any) -> None:
    patch.setattr(SessionTable, "bury", lambda self, session_id, tombstone: None)


def begun_before_it_is_durable(patch: Any) -> None:
    def begin(self: Lifecycle, session: Any, state: Any, then: Any) -> None:
        then(None)
        real(self, session, state, lambda error: None)

    real = Lifecycle.begin
    patch.setattr(Lifecycle, "begin", begin)


def experience_not_checked(patch: Any) -> None:
    def judge(self: Session, chunk: Any) -> Verdict | Reply:
        chunk.experience = None
        return real(self, chunk)

    real = Session.judge_chunk
    patch.setattr(Session, "judge_chunk", judge)


def incarnation_not_checked(patch: Any) -> None:
    patch.setattr(Session, "check_incarnation", lambda self, incarnation: None)


def snapshot_ahead_of_the_journal(patch: Any) -> None:
    def encode(session_id: str, incarnation: int, ordinal: int, *rest: Any) -> Any:
        return real(session_id, incarnation, max(0, ordinal - 1), *rest)

    real = snapshots.encode_snapshot
    patch.setattr(snapshots, "encode_snapshot", encode)


def position_off_by_one(patch: Any) -> None:
    def register(self: SessionTable, head: Any) -> Any:
        session = real(self, head)
        if session is not None:
            session.position += 1
        return session

    real = SessionTable.register
    patch.setattr(SessionTable, "register", register)


def idle_by_the_wall_clock(patch: Any) -> None:
    patch.setattr(Clock, "steady", lambda self: self.wall())


def lease_by_the_wrong_clock(patch: Any) -> None:
    """Monotonic time stands still while the machine is suspended."""
    patch.setattr(ownership, "_now", lambda: ownership.time.monotonic())


def reset_forgotten_on_the_way(patch: Any) -> None:
    real = WriteAhead._record_of

    def record_of(self: WriteAhead, run: Any, now: float) -> Any:
        record = real(self, run, now)
        return record._replace(experience=run.session.experience)

    patch.setattr(WriteAhead, "_record_of", record_of)


PLANTED: list[Plant] = [
    acknowledged_before_the_record, durable_before_the_sync, reply_not_stored, another_chunk_gets_the_reply,
    tombstone_dropped, begun_before_it_is_durable, experience_not_checked, incarnation_not_checked,
    snapshot_ahead_of_the_journal, position_off_by_one, idle_by_the_wall_clock, lease_by_the_wrong_clock,
    reset_forgotten_on_the_way,
]  # fmt: skip
