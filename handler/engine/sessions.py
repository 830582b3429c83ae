"""A session as the engine knows it, and the rules by which a request fits it or not.

Nothing here runs the model or writes anything: these are the facts and the decisions.
"""

import re
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.engine.host_rows import NO_ROW
from dnc_serve.handler.errors import ServeError, StoreUnavailable
from dnc_serve.handler.journal.stores.contract import Head, Lease

if TYPE_CHECKING:
    from dnc_serve.handler.engine.work import Chunk, Reset, Work

MAX_ID_LENGTH = 128
_ID = re.compile(rf"[A-Za-z0-9._~:@-]{{1,{MAX_ID_LENGTH}}}")


def check_id(session_id: str) -> str:
    """The id, if it may name a session; raises BAD_ID."""
    if not _ID.fullmatch(session_id):
        shown = session_id if len(session_id) <= MAX_ID_LENGTH else f"{session_id[:32]}… ({len(session_id)} characters)"
        raise ServeError(
            "BAD_ID",
            f"session id {shown!r}: expected 1 to {MAX_ID_LENGTH} letters, digits or any of . _ ~ : @ -",
            expected=f"1 to {MAX_ID_LENGTH} of A-Z a-z 0-9 . _ ~ : @ -",
            got=shown,
        )
    return session_id


def new_incarnation() -> int:
    """A random 64-bit number other than 0."""
    return secrets.randbits(64) or 1


class Tier(Enum):
    """Where a session's state is."""

    SLOT = "slot"
    HOST = "host"
    STORE = "store"


@dataclass(slots=True)
class Reply:
    """What an applied chunk was answered with, and what tells the same chunk from another."""

    start: int  # the position that the chunk named
    inputs: Float32  # [T, I]
    reset_experience: bool
    experience: int  # after the chunk
    outputs: Float32  # [T, O]
    debug: dict[str, Float32] | None = None

    @property
    def nbytes(self) -> int:
        debug_bytes = sum(array.nbytes for array in self.debug.values()) if self.debug else 0
        return self.inputs.nbytes + self.outputs.nbytes + debug_bytes

    def answers(self, chunk: "Chunk") -> bool:
        """Whether the chunk is the one that this reply was given to."""
        return (
            self.reset_experience == chunk.reset_experience
            and self.inputs.shape == chunk.inputs.shape
            and self.inputs.tobytes() == chunk.inputs.tobytes()
        )


class Replies:
    """The latest replies of a session, bounded in number and bytes."""

    def __init__(self, at_most: int, at_most_bytes: int) -> None:
        self._replies: deque[Reply] = deque()
        self._bytes = 0
        self._at_most = at_most
        self._at_most_bytes = at_most_bytes

    def add(self, reply: Reply) -> None:
        self._replies.append(reply)
        self._bytes += reply.nbytes
        while len(self._replies) > self._at_most or (self._bytes > self._at_most_bytes and len(self._replies) > 1):
            self._bytes -= self._replies.popleft().nbytes

    def clear(self) -> None:
        """Forgets them all; the journal has them still."""
        self._replies.clear()
        self._bytes = 0

    def reaches(self, start: int) -> bool:
        """Whether replies from this position on are all kept."""
        return bool(self._replies) and self._replies[0].start <= start

    def find(self, start: int) -> Reply | None:
        for reply in reversed(self._replies):
            if reply.start == start:
                return reply
            if reply.start < start:
                break
        return None


@dataclass(eq=False, slots=True)
class Session:
    """Identity, where it stands, where its state is, and what waits for it."""

    session_id: str
    incarnation: int
    digest: str
    owner: str
    created_at: float
    last_used_at: float
    replies: Replies
    position: int = 0
    experience: int = 0
    ordinal: int = 0
    durable_position: int = 0
    fingerprint: str = ""
    # The state is in exactly one of: a row of the slab, an array in host memory, the store.
    row: int | None = None
    host: Float32 | None = None
    host_row: int = NO_ROW  # in the block of host memory
    # The newest snapshot in the store, and what has been applied since.
    snapshot_ordinal: int = -1
    passing_snapshots: tuple[int, ...] = ()  # ordinals of those that were taken before they were due
    timesteps_since_snapshot: int = 0
    bytes_since_snapshot: int = 0
    replays: int = 0  # that its state still lacks
    fifo: "deque[Work]" = field(default_factory=deque)
    scheduled: bool = False  # in the engine's rotation
    running: bool = False  # a chunk of it is under way
    busy: bool = False  # the store has been asked something: no work may start
    ended: bool = False
    ending: str = ""  # why it is to end, where the store may have ended it and could not say so
    replayed_elsewhere: bool = False
    corrupt: str = ""  # why its state can't be trusted
    lease: Lease | None = None
    watchers: "list[Callable[[Session], None]] | None" = None

    @property
    def tier(self) -> Tier:
        if self.row is not None:
            return Tier.SLOT
        return Tier.HOST if self.host is not None else Tier.STORE

    @property
    def storable(self) -> bool:
        """Whether the state in memory is the one at its ordinal: not in the middle of a recovery."""
        return self.tier is not Tier.STORE and not self.replays and not self.corrupt

    @property
    def idle(self) -> bool:
        """Whether nothing waits for it and nothing holds it."""
        return not (self.fifo or self.running or self.busy)

    def head(self) -> Head:
        """Its head as the store keeps it."""
        return Head(
            session_id=self.session_id,
            incarnation=self.incarnation,
            digest=self.digest,
            owner=self.owner,
            created_at=self.created_at,
            last_used_at=self.last_used_at,
            position=self.position,
            experience=self.experience,
            ordinal=self.ordinal,
        )

    def check_incarnation(self, incarnation: int | None) -> None:
        """Raises SESSION_REPLACED for a request to an earlier session of this id."""
        if incarnation is not None and incarnation != self.incarnation:
            raise ServeError(
                "SESSION_REPLACED",
                f"session {self.session_id!r} is not the one you knew: it was created or imported anew",
                expected_position=self.position,
                incarnation=self.incarnation,
                got=incarnation,
            )

    def may_have_ended(self) -> ServeError:
        """What everybody is told until the store can say whether it has ended."""
        return StoreUnavailable(
            f"session {self.session_id!r} is ending ({self.ending}), but the store has not said that it has ended"
        )

    def gap(self, position: int) -> ServeError:
        """STEP_GAP: what was sent lies ahead of where the session stands."""
        return ServeError(
            "STEP_GAP",
            f"position {position} is ahead of session {self.session_id!r}, which stands at {self.position}",
            expected_position=self.position,
            durable_position=self.durable_position,
            experience=self.experience,
            got=position,
        )

    def conflict(self, position: int, detail: str) -> ServeError:
        """STEP_CONFLICT: something else was applied at that position."""
        return ServeError(
            "STEP_CONFLICT",
            f"session {self.session_id!r} stands at {self.position}; at {position} {detail}",
            expected_position=self.position,
            experience=self.experience,
            got=position,
        )


class Verdict(Enum):
    """What becomes of a request that is first in its session's FIFO."""

    APPLY = "apply"
    DONE_BEFORE = "done before"
    ASK_JOURNAL = "ask the journal"


def judge_chunk(session: Session, chunk: "Chunk") -> tuple[Verdict, Reply | None]:
    """Whether a chunk is to be applied, or was applied before.

    Raises SESSION_REPLACED, STEP_GAP or STEP_CONFLICT.
    """
    session.check_incarnation(chunk.incarnation)
    if chunk.position is None or chunk.position == session.position:
        if chunk.experience is not None and chunk.experience > session.experience:
            raise session.gap(session.position)  # a reset that it follows has not been applied
        if chunk.experience is not None and chunk.experience < session.experience:
            raise session.conflict(session.position, "a reset came that it doesn't know of")
        return Verdict.APPLY, None
    if chunk.position > session.position:
        raise session.gap(chunk.position)
    reply = session.replies.find(chunk.position)
    if reply is None:
        if session.replies.reaches(chunk.position):
            raise session.conflict(chunk.position, "no chunk began: this one overlaps others")
        return Verdict.ASK_JOURNAL, None
    if not reply.answers(chunk):
        raise session.conflict(chunk.position, "another chunk was applied")
    return Verdict.DONE_BEFORE, reply


def judge_reset(session: Session, reset: "Reset") -> Verdict:
    """Whether a reset is to be applied, or the experience that it names has ended already.

    Raises SESSION_REPLACED, STEP_GAP or STEP_CONFLICT.
    """
    session.check_incarnation(reset.incarnation)
    if reset.experience is not None and reset.experience < session.experience:
        return Verdict.DONE_BEFORE
    if reset.experience is not None and reset.experience > session.experience:
        raise session.gap(session.position if reset.position is None else reset.position)
    if reset.position is not None and reset.position > session.position:
        raise session.gap(reset.position)
    if reset.position is not None and reset.position < session.position:
        raise session.conflict(reset.position, "it went on before this reset came")
    return Verdict.APPLY
