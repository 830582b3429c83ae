"""What can stand in a session's FIFO.

    Work       who asked, until when, and whom to tell
    ├── Chunk  timesteps to apply
    ├── Replay timesteps that the journal says were applied
    ├── Reset  of the experience, or of all
    ├── Peek   a consistent look at head and state
    └── Delete

Each is answered exactly once, by `finish` or `fail`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.journal.stores.contract import Head

if TYPE_CHECKING:
    from dnc_serve.handler.engine.sessions import Session

Done = Callable[[Any, ServeError | None], None]


class Work:
    """One request to one session. `done(result, error)` is called once, on the engine's loop."""

    __slots__ = ("arrived_at", "cancelled", "course", "deadline", "done", "door", "written")

    def __init__(self, done: Done, door: str = "stream", deadline: float | None = None) -> None:
        self.done = done
        self.door = door
        self.deadline = deadline  # time.monotonic()
        self.cancelled = False
        self.written = False  # handed over to the journal: from now on it may count
        self.course: Course | None = None
        self.arrived_at = time.perf_counter()

    def check_wanted(self) -> None:
        """Raises DEADLINE_EXCEEDED or CANCELLED if nobody waits for the result any more."""
        if self.cancelled:
            raise ServeError("CANCELLED", "the caller went away; nothing was applied")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise ServeError("DEADLINE_EXCEEDED", "the deadline passed before the commit; nothing was applied")

    def finish(self, result: Any) -> None:
        self.done(result, None)

    def fail(self, error: ServeError) -> None:
        self.done(None, error)


class Chunk(Work):
    """Timesteps [T, I] to apply at a position, or wherever the session stands."""

    __slots__ = (
        "debug", "experience", "incarnation", "inputs", "position", "reset_experience", "started_at", "stepped_at",
        "traceparent",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Float32,
        done: Done,
        *,
        incarnation: int | None = None,
        position: int | None = None,
        experience: int | None = None,
        reset_experience: bool = False,
        debug: bool = False,
        traceparent: str = "",
        door: str = "stream",
        deadline: float | None = None,
    ) -> None:
        super().__init__(done, door, deadline)
        self.inputs = inputs
        self.incarnation = incarnation
        self.position = position
        self.experience = experience
        self.reset_experience = reset_experience
        self.debug = debug
        self.traceparent = traceparent
        self.started_at = self.stepped_at = 0.0


class Replay(Work):
    """Timesteps that were applied before, with the outputs they gave: to be had again, and compared."""

    __slots__ = ("expected", "fingerprint", "inputs", "reset")

    def __init__(self, inputs: Float32, expected: Float32, reset: str, fingerprint: str, done: Done) -> None:
        super().__init__(done)
        self.inputs = inputs
        self.expected = expected  # [T, O]
        self.reset = reset  # "", "experience" or "all": what came first
        self.fingerprint = fingerprint  # what gave the outputs; empty where there are no timesteps


class Reset(Work):
    """Ends an experience. Scope "experience" zeroes the memory tensors, "all" the whole state."""

    __slots__ = ("experience", "incarnation", "position", "scope")

    def __init__(
        self,
        scope: str,
        done: Done,
        *,
        incarnation: int | None = None,
        position: int | None = None,
        experience: int | None = None,
        door: str = "unary",
        deadline: float | None = None,
    ) -> None:
        super().__init__(done, door, deadline)
        self.scope = scope
        self.incarnation = incarnation
        self.position = position
        self.experience = experience


class Peek(Work):
    """A look at head and state, in order with the chunks."""

    __slots__ = ("with_state",)

    def __init__(
        self, done: Done, *, with_state: bool = True, door: str = "unary", deadline: float | None = None
    ) -> None:
        super().__init__(done, door, deadline)
        self.with_state = with_state


class Delete(Work):
    """Ends the session after all that stands before it."""

    __slots__ = ("incarnation", "why")

    def __init__(self, done: Done, *, incarnation: int | None = None, why: str = "deleted") -> None:
        super().__init__(done, "unary")
        self.incarnation = incarnation
        self.why = why


class Course:
    """What one sender asks of one session without waiting for answers.

    Once something has failed, what followed it would be applied where it doesn't belong. So that nothing is skipped, it
    is refused, until something names the position where the session stands.
    """

    __slots__ = ("broken",)

    def __init__(self) -> None:
        self.broken = False

    def check(self, session: "Session", work: Work) -> None:
        """Raises STEP_GAP for work that stands first and may not be begun."""
        if self.broken:
            position = work.position if isinstance(work, Chunk | Reset) else None
            if position is None:
                raise session.gap(session.position)
            self.broken = position != session.position


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of a chunk."""

    incarnation: int
    position: int
    durable_position: int
    experience: int
    outputs: Float32  # [T, O]
    replayed: bool
    debug: dict[str, Float32] | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of a look: where the session stood, and its state if asked for."""

    head: Head
    fingerprint: str
    state: Float32 | None
