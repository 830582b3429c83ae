"""How far back records go: what is older than so many hours, or beyond so many bytes, may be pruned, step by step.

A step leads to a snapshot: records between two of them are of no use without the earlier. Of each session the two
newest snapshots stay, with all records after the older one, so that a damaged snapshot can be fallen back from.
"""

from collections.abc import Iterable
from typing import NamedTuple

from dnc_serve.handler.store.contract import Prune

SNAPSHOTS_KEPT = 2


class Step(NamedTuple):
    """Records up to a snapshot, and the snapshots before it."""

    at: float  # when the snapshot was taken
    session_id: str
    incarnation: int
    ordinal: int  # the snapshot's
    nbytes: int  # that the step frees, beside the steps before it


def is_step(place: int, snapshots: int, ordinal: int, pruned: int) -> bool:
    """Whether anything may be pruned up to the snapshot at this place, the oldest being 0, of so many."""
    return place <= snapshots - SNAPSHOTS_KEPT and (place > 0 or ordinal > pruned)


def choose(steps: Iterable[Step], before: float, excess_bytes: int) -> list[Prune]:
    """Of steps, oldest first, those older than a time, and as many as it takes to free so many bytes."""
    wanted: dict[tuple[str, int], int] = {}
    freed = 0
    for step in steps:
        if step.at >= before and freed >= excess_bytes:
            break
        wanted[step.session_id, step.incarnation] = step.ordinal
        freed += step.nbytes
    return [Prune(session_id, incarnation, ordinal) for (session_id, incarnation), ordinal in wanted.items()]
