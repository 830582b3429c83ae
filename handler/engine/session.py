"""A session: who it is, where it stands, what waits for it, and the rules of exactly once.

Nothing here runs the model or writes anything: these are the facts and the decisions.
"""

import re
import secrets
from collections import deque
from enum import Enum

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.engine.replies import Replies, Reply
from dnc_serve.handler.engine.requests import Chunk, Request, Reset
from dnc_serve.handler.errors import ServeError, StoreUnavailable
from dnc_serve.handler.store.contract import Head

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


class Status(Enum):
    """What a session is doing; `TRANSITIONS` says what may follow what."""

    IDLE = "idle"  # nothing waits for it
    QUEUED = "queued"  # a request waits for its turn
    RUNNING = "running"  # a chunk of it is stepped or written
    WAITING = "waiting"  # for the store: no request may begin
    ENDING = "ending"  # it ended while a chunk of it was stepped or written
    ENDED = "ended"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.IDLE: frozenset({Status.QUEUED, Status.WAITING, Status.ENDED}),
    Status.QUEUED: frozenset({Status.IDLE, Status.RUNNING, Status.WAITING, Status.ENDED}),
    Status.RUNNING: frozenset({Status.IDLE, Status.QUEUED, Status.ENDING}),
    Status.WAITING: frozenset({Status.IDLE, Status.QUEUED, Status.ENDED}),
    Status.ENDING: frozenset({Status.ENDED}),
    Status.ENDED: frozenset(),
}


GONE = (Status.ENDING, Status.ENDED)


class Session:
    """One session. Who may write what is said beside the fields; everybody may read."""

    __slots__ = (
        "bytes_since_snapshot", "corrupt", "created_at", "digest", "durable_position", "end_unknown", "experience",
        "fingerprint",
        "host_state", "incarnation", "last_used_at", "ordinal", "owner", "passing_snapshots", "position", "queue",
        "replayed_elsewhere", "replays", "replies", "row", "session_id", "snapshot_ordinal", "status",
        "timesteps_since_snapshot",
    )  # fmt: skip

    def __init__(
        self, session_id: str, incarnation: int, digest: str, owner: str, now: float, replies: Replies
    ) -> None:
        self.session_id = session_id
        self.incarnation = incarnation
        self.owner = owner
        self.created_at = now  # as `Clock.steady` has it, like `last_used_at`
        # Where it stands: `write_ahead.py`, once a record of it is written.
        self.digest = digest  # of the model that it belongs to
        self.position = 0
        self.experience = 0
        self.ordinal = 0  # of its last record
        self.durable_position = 0
        self.fingerprint = ""  # of the code that computed its state
        self.last_used_at = now
        self.replies = replies
        # Where its state is, at most one of the two: `state_cache.py`.
        self.row: int | None = None
        self.host_state: Float32 | None = None
        # Its snapshots in the store, and what was applied since the newest: `snapshots.py`.
        self.snapshot_ordinal = -1
        self.passing_snapshots: tuple[int, ...] = ()  # ordinals of those that were taken before they were due
        self.timesteps_since_snapshot = 0
        self.bytes_since_snapshot = 0
        # How its state was recovered: `recovery.py`.
        self.replays = 0  # that its state still lacks
        self.replayed_elsewhere = False  # by other code than what computed it first
        self.corrupt = ""  # why its state can't be trusted
        # Why it is to end, where the store may have ended it and could not say so: `lifecycle.py`.
        self.end_unknown = ""
        # What waits for it: `engine.py`.
        self.queue: deque[Request] = deque()
        self.status = Status.IDLE

    def become(self, status: Status) -> None:
        """Changes the status; whoever asks for a transition that may not be has made a mistake."""
        assert status in TRANSITIONS[self.status], f"{self.session_id}: {self.status} → {status}"
        self.status = status

    @property
    def ended(self) -> bool:
        return self.status in GONE

    @property
    def tier(self) -> Tier:
        if self.row is not None:
            return Tier.SLOT
        return Tier.HOST if self.host_state is not None else Tier.STORE

    @property
    def has_whole_state(self) -> bool:
        """Whether the state in memory is the one at its ordinal: not in the middle of a recovery."""
        return self.tier is not Tier.STORE and not self.replays and not self.corrupt

    def head(self) -> Head:
        """Its head as the store keeps it."""
        return Head(
            session_id=self.session_id,
            incarnation=self.incarnation,
            digest=self.digest,
            owner=self.owner,
            created_at=CLOCK.shown(self.created_at),
            last_used_at=CLOCK.shown(self.last_used_at),
            position=self.position,
            experience=self.experience,
            ordinal=self.ordinal,
        )

    # The rules of exactly once.

    def check_incarnation(self, incarnation: int | None) -> None:
        """Raises SESSION_REPLACED for a request to an earlier session of this id."""
        if incarnation is not None and incarnation != self.incarnation:
            raise replaced(self.session_id, self.position, self.incarnation, incarnation)

    def judge_chunk(self, chunk: Chunk) -> "Verdict | Reply":
        """Whether a chunk is to be applied, or the reply that it got when it was.

        Raises SESSION_REPLACED, STEP_GAP or STEP_CONFLICT.
        """
        if chunk.incarnation != self.incarnation:
            self.check_incarnation(chunk.incarnation)
        position = chunk.position
        if position is None and chunk.known_by_writer:
            if not self.replies.recalled:
                return Verdict.ASK_STORE
            if (reply := self.replies.of_writer(chunk.writer_id)) is not None:
                if not reply.answers(chunk):
                    raise self.conflict(reply.start, "another chunk was applied under the same id")
                return reply
        if position is None or position == self.position:
            if chunk.experience is not None and chunk.experience > self.experience:
                raise self.gap(self.position)  # a reset that it follows has not been applied
            if chunk.experience is not None and chunk.experience < self.experience:
                raise self.conflict(self.position, "a reset came that it doesn't know of")
            return Verdict.APPLY
        if position > self.position:
            raise self.gap(position)
        reply = self.replies.find(position)
        if reply is None:
            if self.replies.reaches(position):
                raise self.conflict(position, "no chunk began: this one overlaps others")
            return Verdict.ASK_STORE
        return self.check_reply(chunk, reply)

    def judge_reset(self, reset: Reset) -> "Verdict":
        """Whether a reset is to be applied, or the experience that it names has ended already.

        Raises SESSION_REPLACED, STEP_GAP or STEP_CONFLICT.
        """
        self.check_incarnation(reset.incarnation)
        if reset.experience is not None and reset.experience < self.experience:
            writer_id = self.replies.ended_by(reset.experience)
            if writer_id is None:
                return Verdict.ASK_STORE
            self.check_ended_by(reset, writer_id)
            return Verdict.DUPLICATE
        if reset.experience is not None and reset.experience > self.experience:
            raise self.gap(self.position if reset.position is None else reset.position)
        if reset.position is not None and reset.position > self.position:
            raise self.gap(reset.position)
        if reset.position is not None and reset.position < self.position:
            raise self.conflict(reset.position, "it went on before this reset came")
        return Verdict.APPLY

    def check_reply(self, chunk: Chunk, reply: Reply | None) -> Reply:
        """The reply, if it was given to this chunk; raises STEP_CONFLICT."""
        if reply is not None and reply.answers(chunk):
            return reply
        assert chunk.position is not None
        whose = "another" if reply is None or reply.writer_id == chunk.writer_id else "another writer's"
        raise self.conflict(chunk.position, f"{whose} chunk was applied")

    def check_ended_by(self, reset: Reset, writer_id: int | None) -> None:
        """Raises STEP_CONFLICT for a reset of an experience that another writer ended; None stands for a writer that
        nobody knows any more."""
        if writer_id is not None and writer_id != reset.writer_id:
            position = self.position if reset.position is None else reset.position
            raise self.conflict(position, f"another writer ended experience {reset.experience}")

    def may_have_ended(self) -> ServeError:
        """What everybody is told until the store can say whether it has ended."""
        return StoreUnavailable(
            f"session {self.session_id!r} is ending ({self.end_unknown}), but the store has not said that it has ended"
        )

    def check_model(self, digest: str) -> None:
        """Raises MODEL_MISMATCH if the session's state is of another model than the one that is served."""
        if self.digest != digest:
            raise ServeError(
                "MODEL_MISMATCH",
                f"session {self.session_id!r} belongs to model {self.digest[:12]}, this server runs {digest[:12]}: "
                "export it, reset it with scope ALL, or delete it",
                session_digest=self.digest,
                model_digest=digest,
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
    """What becomes of a request that is first in its session's queue."""

    APPLY = "apply"
    DUPLICATE = "duplicate"
    ASK_STORE = "ask the store"  # whether it was applied before, and what it was answered


def replaced(session_id: str, position: int, incarnation: int, got: int) -> ServeError:
    """What a request to an earlier session of the id is told."""
    return ServeError(
        "SESSION_REPLACED",
        f"session {session_id!r} is not the one you knew: it was created or imported anew",
        expected_position=position,
        incarnation=incarnation,
        got=got,
    )
