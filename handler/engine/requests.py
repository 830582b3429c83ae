"""What can stand in a session's queue.

    Request        who asked, until when, and whom to tell
    ├── Chunk      timesteps to apply
    ├── Replay     timesteps that the journal says were applied
    ├── Reset      of the experience, or of all
    ├── Inspect    a consistent view of head and state
    ├── Move       to another version of the model
    └── Delete

Each is answered exactly once, by `done(result, error)` on the engine's loop.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.contract import Head

Done = Callable[[Any, ServeError | None], None]


class Standing(Protocol):
    """Where a session stands, as far as a request may have to know it."""

    position: int

    def gap(self, position: int) -> ServeError: ...


class ErrorState:
    """What one sender, who doesn't wait for answers, asks of one session.

    Once something has failed, what followed it would be applied where it doesn't belong. So that nothing is skipped, it
    is refused, until something names the position where the session stands. What was sent behind the failed without
    knowing of it, and says so by `pipelined`, may name that position by chance, where somebody else took the session
    there: it is refused until something comes that knows.
    """

    __slots__ = ("failed", "unknown")

    def __init__(self) -> None:
        self.failed = False
        self.unknown = False  # whether nothing has come since that knows of the failure

    def fail(self) -> None:
        """Something has failed; what comes now was sent behind it."""
        self.failed = self.unknown = True

    def check(self, session: Standing, request: "Request") -> None:
        """Raises STEP_GAP for a request that stands first and may not begin."""
        if self.failed:
            if not isinstance(request, Chunk | Reset) or request.position is None:
                raise session.gap(session.position)
            if request.pipelined and self.unknown:
                raise session.gap(session.position)
            self.unknown = False
            self.failed = request.position != session.position


class Request:
    """One request to one session. `endpoint` is where it came in; `deadline` is of `time.monotonic()`."""

    __slots__ = ("arrived_at", "cancelled", "deadline", "done", "endpoint", "error_state", "written")

    def __init__(self, done: Done, endpoint: str = "stream", deadline: float | None = None) -> None:
        self.done = done
        self.endpoint = endpoint
        self.deadline = deadline
        self.cancelled = False
        self.written = False  # handed over to the journal: from now on it may count
        self.error_state: ErrorState | None = None
        self.arrived_at = time.perf_counter()

    def check_wanted(self) -> None:
        """Raises DEADLINE_EXCEEDED or CANCELLED if nobody waits for the result any more."""
        if self.cancelled:
            raise ServeError("CANCELLED", "the caller went away; nothing was applied")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise ServeError("DEADLINE_EXCEEDED", "the deadline passed before the commit; nothing was applied")


class Chunk(Request):
    """Timesteps [T, *shape] to apply at a position, or wherever the session stands."""

    __slots__ = (
        "debug", "experience", "incarnation", "inputs", "known_by_writer", "owner", "pipelined", "position",
        "request_id", "reset_experience", "started_at", "stateless", "stepped_at", "trace_id", "traceparent",
        "writer_id",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Array,
        done: Done,
        *,
        incarnation: int | None = None,
        position: int | None = None,
        experience: int | None = None,
        reset_experience: bool = False,
        debug: bool = False,
        traceparent: str = "",
        writer_id: int = 0,
        pipelined: bool = False,
        endpoint: str = "stream",
        deadline: float | None = None,
        owner: str = "",
        request_id: int = 0,
    ) -> None:
        super().__init__(done, endpoint, deadline)
        self.inputs = inputs
        self.incarnation = incarnation
        self.position = position
        self.experience = experience
        self.reset_experience = reset_experience
        self.debug = debug
        self.traceparent = traceparent
        self.writer_id = writer_id
        self.pipelined = pipelined
        self.known_by_writer = (
            False  # each chunk of its sender has a writer id of its own: that tells it without a position
        )
        self.stateless = False  # its caller keeps the state: nothing of it is recorded
        self.trace_id = ""  # of the trace that it stands in, once its spans were recorded
        self.owner = owner
        self.request_id = request_id
        self.started_at = self.stepped_at = 0.0  # time.perf_counter()


class Replay(Request):
    """Timesteps that were applied before, with the outputs they gave: to be had again, and compared."""

    __slots__ = ("expected", "fingerprint", "inputs", "reset")

    def __init__(self, inputs: Array, expected: Array, reset: str, fingerprint: str, done: Done) -> None:
        super().__init__(done)
        self.inputs = inputs
        self.expected = expected  # [T, *shape]
        self.reset = reset  # "", "experience" or "all": what came first
        self.fingerprint = fingerprint  # of the code that gave the outputs; empty where there are no timesteps


class Reset(Request):
    """Ends an experience. Scope "experience" zeroes the memory tensors, "all" the whole state."""

    __slots__ = ("experience", "incarnation", "pipelined", "position", "scope", "writer_id")

    def __init__(
        self,
        scope: str,
        done: Done,
        *,
        incarnation: int | None = None,
        position: int | None = None,
        experience: int | None = None,
        writer_id: int = 0,
        pipelined: bool = False,
        endpoint: str = "unary",
        deadline: float | None = None,
    ) -> None:
        super().__init__(done, endpoint, deadline)
        self.scope = scope
        self.incarnation = incarnation
        self.position = position
        self.experience = experience
        self.writer_id = writer_id
        self.pipelined = pipelined


class Inspect(Request):
    """A view of head and state, in order with the chunks."""

    __slots__ = ("with_state",)

    def __init__(
        self, done: Done, *, with_state: bool = True, endpoint: str = "unary", deadline: float | None = None
    ) -> None:
        super().__init__(done, endpoint, deadline)
        self.with_state = with_state


class Delete(Request):
    """Ends the session after all that stands before it."""

    __slots__ = ("incarnation", "why")

    def __init__(self, done: Done, *, incarnation: int | None = None, why: str = "deleted") -> None:
        super().__init__(done, "unary")
        self.incarnation = incarnation
        self.why = why


class Target(Protocol):
    """The engine that a session comes to."""

    digest: str
    ownership: Any

    @property
    def fingerprint(self) -> str:
        """Of the code that computes it from then on."""

    def check_room(self) -> None:
        """Raises SESSION_LIMIT."""

    def receive(self, session: Any, state: Float32) -> Any:
        """Takes the session over as it stands, with its state [S]; returns what it is from now on."""


class Move(Request):
    """Hands the session over to another version of its model, after all that stands before it. `former` are the
    ordinals of its snapshots in the store, which are of no use from then on."""

    __slots__ = ("former", "incarnation", "target")

    def __init__(
        self, target: Target, former: tuple[int, ...], done: Done, *, incarnation: int | None = None,
        deadline: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(done, "unary", deadline)
        self.target = target
        self.former = former
        self.incarnation = incarnation


@dataclass(slots=True)
class Applied:
    """The result of a chunk."""

    incarnation: int
    position: int
    durable_position: int
    experience: int
    outputs: Array  # [T, *shape]
    replayed: bool
    debug: dict[str, Array] | None = None
    state: Float32 | None = None  # [S] after it, of a chunk that is stateless


@dataclass(frozen=True, slots=True)
class StateView:
    """The result of an inspection: where the session stood, and its state [S] if asked for."""

    head: Head
    fingerprint: str
    state: Float32 | None
