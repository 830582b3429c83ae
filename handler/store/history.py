"""What the store knows of a session, read back: a good snapshot and the operations after it.

Runs in a worker thread; the engine replays the operations.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.contract import SnapshotInfo, Store
from dnc_serve.handler.store.records import MOVED, Damaged, Operation, decode_record, decode_snapshot

logger = logging.getLogger(__name__)


class OfAnotherModel(Damaged):
    """What is recorded leads on from here by another model: nothing before can be had again."""


@dataclass(slots=True)
class Recovered:
    """A state, and what was applied to it since."""

    state: Float32 | None  # None: zeros
    ordinal: int
    position: int
    experience: int
    fingerprint: str
    snapshot_ordinal: int
    operations: list[Operation] = field(default_factory=list)
    fallbacks: int = 0  # damaged snapshots passed over

    def until(self, position: int) -> None:
        """Leaves out what lies beyond a position, cutting a chunk where need be."""
        kept = []
        for operation in self.operations:
            # A reset right at the position counts: the session stood there after it too.
            if operation.start > position or (operation.start == position and len(operation.inputs)):
                break
            timesteps = position - operation.start
            if timesteps < len(operation.inputs):
                operation = replace(
                    operation,
                    position=position,
                    inputs=operation.inputs[:timesteps],
                    outputs=operation.outputs[:timesteps],
                )
            kept.append(operation)
        self.operations = kept


def recover(
    store: Store,
    session_id: str,
    incarnation: int,
    last: tuple[int, int],
    state_size: int,
    position: int | None = None,
    since: int | None = None,
) -> Recovered:
    """The session's newest state that can be believed, not newer than position `since`, and the operations that lead
    from there to where the session stands, `last` (ordinal, position), or to an earlier `position`.

    Raises CORRUPT_STATE when no snapshot and no beginning lead there, POSITION_GONE when the position lies before all
    that is kept, STORE_UNAVAILABLE when the store can't be read.
    """
    snapshots = store.snapshots(session_id, incarnation)
    newest = position if since is None else since
    reachable = [info for info in snapshots if newest is None or info.position <= newest]
    damage: list[str] = []
    moved = False
    for info in (*reachable, None):
        try:
            recovered = _from(store, session_id, incarnation, info, last, state_size)
        except OfAnotherModel as exc:
            damage.append(str(exc))
            moved = True
            continue
        except Damaged as exc:
            damage.append(str(exc))
            logger.warning("session %r: %s; going back to an earlier snapshot", session_id, exc)
            continue
        recovered.fallbacks = len(damage)
        if position is not None:
            recovered.until(position)
        return recovered
    if newest is not None and snapshots and (moved or not reachable):
        raise ServeError(
            "POSITION_GONE",
            f"the journal of session {session_id!r} no longer reaches position {newest}",
            earliest_position=snapshots[-1].position,
        )
    raise ServeError("CORRUPT_STATE", f"session {session_id!r} can't be recovered: {'; '.join(damage)}")


def _from(
    store: Store, session_id: str, incarnation: int, info: SnapshotInfo | None, last: tuple[int, int], state_size: int
) -> Recovered:
    """Recovers from one snapshot, or from the beginning; raises `Damaged`."""
    if info is None:
        recovered = Recovered(None, 0, 0, 0, "", -1)
    else:
        snapshot = store.snapshot(session_id, incarnation, info.ordinal)
        if snapshot is None:
            raise Damaged(f"snapshot {info.ordinal} is not there any more")
        state, fingerprint = decode_snapshot(snapshot)
        if state.size != state_size:
            raise Damaged(f"snapshot {info.ordinal} holds {state.size} numbers, the model's state {state_size}")
        recovered = Recovered(
            state, snapshot.ordinal, snapshot.position, snapshot.experience, fingerprint, snapshot.ordinal
        )
    ordinal, position = recovered.ordinal, recovered.position
    last_ordinal, last_position = last
    records = store.records(session_id, incarnation, ordinal, last_ordinal) if ordinal < last_ordinal else ()
    for record in records:
        operation = decode_record(record)
        ordinal += 1
        if operation.ordinal != ordinal or operation.start != position:
            raise Damaged(f"record {ordinal} from position {position} is missing")
        position = operation.position
        if operation.reset == MOVED:
            raise OfAnotherModel(f"what came before record {ordinal} is another model's")
        recovered.operations.append(operation)
    if ordinal != last_ordinal:
        raise Damaged(f"records {ordinal + 1} to {last_ordinal} are missing")
    if position != last_position:  # a copy begins in the middle: without its first snapshot there is no beginning
        raise Damaged(f"what is kept leads to position {position}, not {last_position}")
    return recovered


def earliest_position(store: Store, session_id: str, incarnation: int) -> int | None:
    """The earliest position that can be had again; None if only the present one can."""
    snapshots = store.snapshots(session_id, incarnation)
    if not snapshots or not _begins_there(store, session_id, incarnation, snapshots[-1].ordinal):
        first = next(store.records(session_id, incarnation, 0, 1), None)
        if first is not None:
            with suppress(Damaged):
                return decode_record(first).start
    return snapshots[-1].position if snapshots else None


def _begins_there(store: Store, session_id: str, incarnation: int, ordinal: int) -> bool:
    """Whether the session came to its model by this record; snapshots from before are not kept."""
    record = next(store.records(session_id, incarnation, ordinal - 1, ordinal), None) if ordinal else None
    with suppress(Damaged):
        return record is not None and decode_record(record).reset == MOVED
    return False


def find_reply(store: Store, session_id: str, incarnation: int, last_ordinal: int, position: int) -> Operation | None:
    """The chunk that was applied at a position, if the journal still has it; raises STEP_CONFLICT's grounds as None.

    Raises REPLY_GONE when the journal does not reach back so far.
    """
    snapshots = store.snapshots(session_id, incarnation)
    # Snapshots say which ordinal a position has at most and at least, so that only few records are read.
    after = max((info.ordinal for info in snapshots if info.position <= position), default=0)
    up_to = min((info.ordinal for info in snapshots if info.position > position), default=last_ordinal)
    reaches_back = False
    for record in store.records(session_id, incarnation, max(after - 1, 0), up_to):
        try:
            operation = decode_record(record)
        except Damaged as exc:
            raise ServeError("CORRUPT_STATE", f"session {session_id!r}: {exc}") from exc
        if operation.start <= position:
            reaches_back = True
        if operation.start == position and len(operation.inputs):
            return operation
        if operation.start > position:
            break
    if reaches_back:
        return None
    raise ServeError(
        "REPLY_GONE",
        f"the reply of session {session_id!r} at position {position} is no longer kept",
        got=position,
    )


def latest(store: Store, session_id: str, incarnation: int, last_ordinal: int, count: int) -> list[Operation]:
    """The latest operations that can be read, at most so many, the oldest first."""
    operations = []
    for record in store.records(session_id, incarnation, max(0, last_ordinal - count), last_ordinal):
        with suppress(Damaged):
            operations.append(decode_record(record))
    return operations


def find_writer(store: Store, session_id: str, incarnation: int, last_ordinal: int, experience: int) -> int | None:
    """The writer that ended an experience; None if the journal doesn't tell any more."""
    snapshots = store.snapshots(session_id, incarnation)
    after = max((info.ordinal for info in snapshots if info.experience <= experience), default=0)
    up_to = min((info.ordinal for info in snapshots if info.experience > experience), default=last_ordinal)
    for record in store.records(session_id, incarnation, after, up_to):
        if record.experience > experience:
            with suppress(Damaged):
                operation = decode_record(record)
                # Where the records before it were pruned, it is one that only follows the reset.
                ended = operation.reset not in ("", MOVED) and operation.experience == experience + 1
                return operation.writer_id if ended else None
            break
    return None
