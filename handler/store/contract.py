"""What a store of sessions must do; SQLite and Redis pass the same tests.

A store keeps, for each session, its head (identity and where it stands), its records (one for each applied operation,
`ordinal` 1, 2, … without gaps) and its snapshots. Bodies and states are opaque bytes; their checksums belong to the
journal, which writes and reads them.

All calls block and may be made from any thread. `commit` is called from one thread at a time. What `commit` was given
in one call becomes visible as a whole for each session, in the order given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

# What a session may begin with at most, as its position or experience. SQLite's integers end at 2^63 - 1, so whatever
# begins there has as many timesteps before it as it could ever take.
MAX_COUNT = 1 << 62


@dataclass(frozen=True, slots=True)
class Head:
    """Who a session is, and where it stood after the last committed operation."""

    session_id: str
    incarnation: int  # 64 bits, unsigned
    digest: str  # of the model that it belongs to
    owner: str  # name of the token that made it; empty without tokens
    created_at: float  # seconds since the epoch
    last_used_at: float
    position: int
    experience: int
    ordinal: int  # of the last record; 0 before the first
    ended: str = ""  # why it ended: deleted or expired; empty while it lives
    ended_at: float = 0.0


class Record(NamedTuple):
    """One applied operation. `position` and `experience` are those after it. A tuple, because that costs a quarter of
    a frozen dataclass, and every chunk makes one."""

    session_id: str
    incarnation: int
    ordinal: int
    position: int
    experience: int
    at: float  # seconds since the epoch
    body: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state as of record `ordinal`, `state` being the journal's encoding of it."""

    session_id: str
    incarnation: int
    ordinal: int
    position: int
    experience: int
    at: float
    state: bytes


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot without its state."""

    ordinal: int
    position: int
    experience: int
    at: float
    state_bytes: int


@dataclass(frozen=True, slots=True)
class Begin:
    """A session begins, in place of whatever stood under its id, tombstones included."""

    head: Head
    snapshot: Snapshot | None = None  # None: the zero state


class Append(NamedTuple):
    """An operation was applied. Records of the session from this ordinal on, left by a commit whose outcome was
    unknown, give way to this one. `digest`, where given, is the model that the session belongs to from now on."""

    record: Record
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """A snapshot is kept; those of the session as of the records `instead_of` are no longer needed."""

    snapshot: Snapshot
    instead_of: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """A session ends: records and snapshots go, a tombstone stays."""

    session_id: str
    incarnation: int
    why: str
    at: float


@dataclass(frozen=True, slots=True)
class Prune:
    """Records up to `ordinal`, and snapshots before it, are no longer needed."""

    session_id: str
    incarnation: int
    ordinal: int


Mutation = Begin | Append | Keep | End | Prune


def session_of(mutation: Mutation) -> str:
    """The id of the session that it changes."""
    match mutation:
        case Begin(head=whose) | Append(record=whose) | Keep(snapshot=whose):
            return whose.session_id
        case End() | Prune():
            return mutation.session_id


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a session. `token` grows with each new owner; an older one is refused."""

    session_id: str
    token: int
    ttl_s: float  # from the moment before the store was asked


class LeaseHeld(Exception):
    """Another server owns the session, and its lease runs for `rest_s` seconds more."""

    def __init__(self, session_id: str, owner: str, rest_s: float) -> None:
        super().__init__(f"session {session_id!r} is owned by {owner} for {rest_s:.1f} s more")
        self.session_id, self.owner, self.rest_s = session_id, owner, rest_s


class Fenced(Exception):
    """The write does not go on from what the store holds: the session has ended or begun anew, another server has
    taken it over, or records before this one are missing."""


class Rejected(Exception):
    """The store can't write this, now or later; what else the commit held is written all the same."""


Outcome = Fenced | Rejected | None


def by_session(mutations: Sequence[Mutation]) -> dict[str, list[int]]:
    """The places of each session's mutations."""
    places: dict[str, list[int]] = {}
    for place, mutation in enumerate(mutations):
        places.setdefault(session_of(mutation), []).append(place)
    return places


class StoreRefused(Exception):
    """The store can't be used as it is, and waiting won't help: another server holds it, its schema is newer, or its
    settings would lose data. The message says what to do."""


class Store(Protocol):
    """Durable sessions. Every method raises `StoreUnavailable` when the medium fails, and may be called again later."""

    shared: bool  # whether it is a `SharedStore`

    def open(self) -> None:
        """Takes the store for this server; raises `StoreRefused` where only a person can help."""

    def close(self) -> None:
        """Syncs, and gives the store back."""

    def commit(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        """Writes all of them, handed to the operating system (or acknowledged by the shared store), one outcome each.

        What can't be written fails its own session alone, as `Rejected`. When it raises, the outcome is unknown, and
        the next `Append` at the same ordinal replaces what may be there. A shared store writes only sessions whose
        lease this server acquired, and keeps their tokens itself.
        """

    def sync(self) -> None:
        """Returns when all that was committed before the call survives a power loss."""

    def head(self, session_id: str) -> Head | None:
        """The head, tombstones included; None if the id is unknown."""

    def heads(self) -> Iterator[Head]:
        """All heads, tombstones included."""

    def records(self, session_id: str, incarnation: int, after: int, up_to: int | None = None) -> Iterator[Record]:
        """Records with after < ordinal <= up_to, in order and without gaps: those pruned before are not there, and it
        ends before the first that is lost. Whoever needs them all compares the ordinals."""

    def snapshots(self, session_id: str, incarnation: int) -> list[SnapshotInfo]:
        """Which snapshots there are, newest first."""

    def snapshot(self, session_id: str, incarnation: int, ordinal: int) -> Snapshot | None:
        """The snapshot as of record `ordinal`."""

    def forget_tombstones(self, before: float, at_most: int) -> int:
        """Drops tombstones that ended before a time, and the oldest beyond a number; returns how many went."""

    def prunable(self, before: float, excess_bytes: int) -> list[Prune]:
        """What is to be pruned so that nothing is kept from before a time, and so many bytes become free, as far as
        `prunable.py` allows; a shared store knows of the sessions that this server holds. It costs what it finds."""

    def size_bytes(self) -> int:
        """Bytes that records and snapshots take."""


class SharedStore(Store, Protocol):
    """One that several servers share: a session is written by the one that holds its lease."""

    def reserve(self, session_id: str, owner: str, at_most: int | None) -> int:
        """Counts a session that is about to begin, and whose lease this server has acquired, among its owner's, unless
        it has more than so many others; returns how many others it has."""

    def count_of(self, owner: str, at_most: int | None) -> int:
        """How many sessions of an owner's there are; where these seem more than `at_most`, none is counted that has
        ended."""

    def owned(self, owner: str, after: str, prefix: str, size: int) -> tuple[list[Head], str]:
        """Up to `size` of the owner's living sessions, by id, whose ids follow `after`, and the last id if there are
        more."""

    def overdue(self, used_before: float, born_before: float | None, at_most: int) -> list[tuple[Head, str]]:
        """Some living sessions that were last used, or made, before a time, and that no other server holds; with
        "idle" or "age"."""

    def acquire(self, session_id: str) -> Lease:
        """The lease of a session; raises `LeaseHeld`."""

    def renew(self, leases: Sequence[Lease]) -> list[Lease | None]:
        """Renewed leases; None where another server has taken over."""

    def release(self, leases: Sequence[Lease]) -> None:
        """Lets other servers have the sessions at once."""
