"""Which rows of the SQLite file hold which session's records, kept in memory in place of an index on the disk.

Sixteen bytes for a record, a few hundred for a session. Built by one pass over the small columns when the file is
opened, which applies the rule that `schema.sql` gives: a record replaces what its session had from its ordinal on.
"""

import bisect
import heapq
import logging
import sqlite3
import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sortedcontainers import SortedList

from dnc_serve.handler.store.prunable import Step, is_step
from dnc_serve.handler.store.sqlite_rows import SessionRow, record_crc, to_unsigned

logger = logging.getLogger(__name__)

LOST = 0  # in place of a row: a record that was there can't be read


class Standing(NamedTuple):
    """Where a session stands."""

    key: int
    incarnation: int
    pruned: int
    ordinal: int
    position: int
    experience: int
    at: float
    ended: str


class Kept(NamedTuple):
    """A snapshot."""

    ordinal: int
    at: float
    nbytes: int


class Chain:
    """A session's standing, the rows and sizes of its records `pruned + 1` to `ordinal`, and its snapshots, the oldest
    first."""

    __slots__ = ("rows", "sizes", "snapshots", "standing", "steps")

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.rows = array("q")
        self.sizes = array("q")
        self.snapshots: list[Kept] = []
        self.steps: set[int] = set()  # ordinals of the snapshots up to which something may be pruned

    def rows_between(self, after: int, up_to: int | None) -> "array[int]":
        """Rows of the records with after < ordinal <= up_to."""
        pruned = self.standing.pruned
        end = len(self.rows) if up_to is None else max(0, up_to - pruned)
        return self.rows[max(0, after - pruned) : end]


class Index:
    """All sessions of one file."""

    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.ids: dict[int, str] = {}
        # A heap of (row, bytes) of records that nobody needs, to be deleted in time: the oldest first, since neighbours
        # share a page.
        self.dead: list[tuple[int, int]] = []
        self.dead_bytes = 0
        self.size_bytes = 0
        self.last_row = 0
        self.last_key = 0
        self._steps = SortedList()  # (at, id, ordinal) of every session's

    def begin(self, session_id: str, standing: Standing) -> None:
        """A session begins in place of what stood under its id."""
        former = self.chains.get(session_id)
        if former is not None:
            self._shorten(former, former.standing.ordinal)
            del self.ids[former.standing.key]
        self.chains[session_id] = Chain(standing)
        self.ids[standing.key] = session_id

    def append(self, session_id: str, standing: Standing, row: int, size: int) -> None:
        """A record was written; what the session had from its ordinal on gives way."""
        chain = self.chains[session_id]
        kept = standing.ordinal - standing.pruned - 1
        if kept < len(chain.rows):
            self._cut(chain, slice(kept, None))
        chain.rows.append(row)
        chain.sizes.append(size)
        chain.standing = standing
        self.size_bytes += size

    def shorten(self, session_id: str, standing: Standing) -> None:
        """Records up to `standing.pruned` are no longer needed."""
        chain = self.chains[session_id]
        self._shorten(chain, standing.pruned)
        chain.standing = standing
        self._find_steps(session_id)

    def forget(self, key: int, session_id: str) -> None:
        """A tombstone is gone; what began under the same id since then stays."""
        if self.ids.pop(key, None) is not None:
            del self.chains[session_id]

    def keep(self, session_id: str, snapshot: Kept) -> None:
        """A snapshot was written."""
        bisect.insort(self.chains[session_id].snapshots, snapshot)
        self.size_bytes += snapshot.nbytes
        self._find_steps(session_id)

    def drop(self, session_id: str, ordinal: int) -> None:
        """A snapshot was deleted."""
        chain = self.chains[session_id]
        place = bisect.bisect_left(chain.snapshots, (ordinal,))
        dropped = chain.snapshots.pop(place)
        self.size_bytes -= dropped.nbytes
        self._set_step(session_id, dropped, False)
        self._find_steps(session_id)

    def steps(self) -> Iterator[Step]:
        """In which it may be pruned, the oldest first."""
        done: dict[str, tuple[int, int]] = {}  # up to which ordinal, and how many snapshots
        for at, session_id, ordinal in self._steps:
            chain = self.chains[session_id]
            pruned = chain.standing.pruned
            former, dropped = done.get(session_id, (pruned, 0))
            place = bisect.bisect_left(chain.snapshots, (ordinal,))
            nbytes = sum(chain.sizes[max(0, former - pruned) : ordinal - pruned])
            nbytes += sum(kept.nbytes for kept in chain.snapshots[dropped:place])
            done[session_id] = ordinal, place
            yield Step(at, session_id, chain.standing.incarnation, ordinal, nbytes)

    def _find_steps(self, session_id: str) -> None:
        """What was written or deleted last can only have changed what the oldest and the newest snapshots are for."""
        chain = self.chains[session_id]
        count = len(chain.snapshots)
        for place in {0, 1, count - 2, count - 1}:
            if 0 <= place < count:
                kept = chain.snapshots[place]
                self._set_step(session_id, kept, is_step(place, count, kept.ordinal, chain.standing.pruned))

    def _set_step(self, session_id: str, kept: Kept, is_one: bool) -> None:
        steps = self.chains[session_id].steps
        if is_one and kept.ordinal not in steps:
            steps.add(kept.ordinal)
            self._steps.add((kept.at, session_id, kept.ordinal))
        elif not is_one and kept.ordinal in steps:
            steps.remove(kept.ordinal)
            self._steps.remove((kept.at, session_id, kept.ordinal))

    def take_dead(self, at_most: int, at_most_bytes: int) -> list[tuple[int, int]]:
        """Some of the dead, at least one, the oldest first; whoever fails to delete them gives them to `bury`."""
        taken: list[tuple[int, int]] = []
        total = 0
        while self.dead and len(taken) < at_most and (not taken or total + self.dead[0][1] <= at_most_bytes):
            taken.append(heapq.heappop(self.dead))
            total += taken[-1][1]
        self.dead_bytes -= total
        return taken

    def bury(self, dead: Iterable[tuple[int, int]]) -> None:
        buried = list(dead)
        self.dead_bytes += sum(size for _, size in buried)
        if len(buried) > len(self.dead) // 16:
            self.dead += buried
            heapq.heapify(self.dead)
        else:
            for one in buried:
                heapq.heappush(self.dead, one)

    def _shorten(self, chain: Chain, up_to: int) -> None:
        self._cut(chain, slice(0, max(0, up_to - chain.standing.pruned)))

    def _cut(self, chain: Chain, which: slice) -> None:
        self.bury((row, size) for row, size in zip(chain.rows[which], chain.sizes[which], strict=True) if row != LOST)
        self.size_bytes -= sum(chain.sizes[which])
        del chain.rows[which]
        del chain.sizes[which]


def load(connection: sqlite3.Connection) -> Index:
    """Reads the small columns of the whole file."""
    index = Index()
    for row in session_rows(connection):
        index.last_key = row.key
        standing = Standing(
            key=row.key,
            incarnation=to_unsigned(row.incarnation),
            pruned=row.pruned,
            ordinal=row.pruned,
            position=row.position,
            experience=row.experience,
            at=row.last_used_at,
            ended=row.ended,
        )
        index.begin(row.id, standing)
    _load_records(connection, index)
    for session, ordinal, at, size in connection.execute(
        "SELECT session, ordinal, at, length(state) FROM snapshots ORDER BY session, ordinal"
    ):
        if session in index.ids:
            index.keep(index.ids[session], Kept(ordinal, at, size))
    return index


def session_rows(connection: sqlite3.Connection, after: int = 0, at_most: int = -1) -> Iterator[SessionRow]:
    """Rows of `sessions` in order of their keys. A damaged one is left out, and the log says so."""
    for *columns, crc in connection.execute(
        "SELECT * FROM sessions WHERE key > ? ORDER BY key LIMIT ?", (after, at_most)
    ):
        row = SessionRow(*columns)
        if row.crc() == crc:
            yield row
        else:
            logger.error("row %s of sessions is damaged: that session is lost", row.key)


def _load_records(connection: sqlite3.Connection, index: Index) -> None:
    chains = {key: index.chains[session_id] for key, session_id in index.ids.items()}
    damaged: list[Chain | None] = []
    for row, session, ordinal, position, experience, at, crc, size in connection.execute(
        "SELECT row, session, ordinal, position, experience, at, crc, length(body) FROM records ORDER BY row"
    ):
        index.last_row = row
        chain = chains.get(session)
        try:
            whole = record_crc(row, session, ordinal, position, experience, at) == crc
        except struct.error:  # a flipped bit can change a column's type
            whole = False
        if not whole:
            logger.error("row %d of records is damaged", row)
            damaged.append(chain)
            continue
        # A key whose session's row is gone may still stand in records that were not deleted yet.
        if session > index.last_key:
            index.last_key = session
        if chain is None or chain.standing.ended or ordinal <= chain.standing.pruned:
            index.bury([(row, size)])
            continue
        kept = ordinal - chain.standing.pruned - 1
        missing = kept - len(chain.rows)
        if missing > 0:
            chain.rows.extend([LOST] * missing)
            chain.sizes.extend([0] * missing)
        base = chain.standing
        standing = Standing(session, base.incarnation, base.pruned, ordinal, position, experience, at, "")
        index.append(index.ids[session], standing, row, size)
    for chain in damaged:
        if chain is None:
            continue
        # Whether it was a middle one or the last can't be told: claim one more than there is, so that whoever reads
        # the session finds a record missing instead of a session that ends too early.
        chain.rows.append(LOST)
        chain.sizes.append(0)
        chain.standing = chain.standing._replace(ordinal=chain.standing.ordinal + 1)
    for session_id, chain in index.chains.items():
        if LOST in chain.rows:
            last_whole = chain.standing.pruned + chain.rows.index(LOST)
            logger.error("session %r: records after ordinal %d are lost", session_id, last_whole)
    (sessions,) = connection.execute("SELECT count(*) FROM sessions").fetchone()
    if damaged or sessions > len(index.ids):
        # What looks dead may belong to what is damaged: it stays, for whoever wants to rescue it.
        index.dead.clear()
        index.dead_bytes = 0
