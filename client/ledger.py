"""What a client has sent to one session, and what became of it: the client's half of "exactly once".

A `Ledger` holds, in order, the chunks and resets of one session that may still have to be sent (again):

    kept        answered, but not yet safe from a power loss of the server: `durable_position` is not past them
    in flight   sent on the present connection, and not answered on it
    waiting     entered, and held back by the window

A lost connection turns everything unanswered into waiting. A server that comes back behind what it had answered makes
kept entries go out again; their outputs are compared with those delivered before, and never delivered twice. Whatever
fails is withdrawn together with all that follows it, so that `position` is again what the user has been given.

Nothing here does I/O.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dnc_serve.client.errors import CorruptState, DncError, Internal

# Outputs that a server computes again, perhaps with another artifact, come this close to the first ones.
RECOMPUTED_TOLERANCE = 1e-5


@dataclass(slots=True, eq=False)
class Entry:
    """One chunk, or one reset, which takes no timesteps."""

    serial: int
    start: int  # the position that it follows
    experience: int  # the experience that it follows
    timesteps: int
    resets: bool
    request: Any
    nbytes: int
    request_id: int = 0  # of the latest sending
    pipelined: bool = False  # whether that went out behind others without an answer
    outputs: bytes = b""
    result: Any = None  # the answer, until somebody takes it
    failure: DncError | None = None
    refusal: DncError | None = None  # of the latest sending
    settled: bool = False
    waiters: list[Any] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + self.timesteps

    @property
    def message(self) -> Any:
        """The chunk or the reset in its request."""
        return self.request.chunk if self.timesteps else self.request.reset

    def take(self) -> Any:
        """The answer, which is kept no longer."""
        result, self.result = self.result, None
        return result

    def check_again(self, outputs: bytes) -> None:
        """Raises CorruptState unless a repeated answer has the outputs that were delivered."""
        if not _agree(self.outputs, outputs):
            raise CorruptState(
                f"the server lost timesteps {self.start} to {self.end} and computed them again with other outputs "
                "than those that were delivered"
            )

    @property
    def before(self) -> tuple[int, int]:
        """Position and experience that it follows."""
        return self.start, self.experience

    @property
    def after(self) -> tuple[int, int]:
        """Position and experience that it leads to."""
        return self.end, self.experience + self.resets

    def is_durable(self, durable_position: int) -> bool:
        """Whether a power loss can't undo it. A reset's own durability shows only in that of a later chunk."""
        return self.end <= durable_position if self.timesteps else self.start < durable_position


class Ledger:
    """The entries of one session, each applied once and answered once."""

    def __init__(
        self,
        position: int = 0,
        experience: int = 0,
        *,
        window: int = 16,
        window_bytes: int = 16 << 20,
        keep_bytes: int = 64 << 20,
    ) -> None:
        self.position = position
        self.experience = experience
        self.durable_position = 0
        self._window = max(1, window)
        self._window_bytes = window_bytes
        self._keep_bytes = keep_bytes
        self._entries: list[Entry] = []
        # Entries before `_settled` have been answered once and for all; those before `_confirmed` need nothing more on
        # the present connection; those before `_sent` have been sent on it.
        self._settled = 0
        self._confirmed = 0
        self._sent = 0
        self._next_serial = 0
        self._last_request_id = 0
        self._kept_bytes = 0
        self._bytes_in_flight = 0
        self._refused = False
        self._rewound_to: int | None = None
        # Positions and experiences up to which all has been applied, and further ones that may have been.
        self._applied = self._in_doubt = (position, experience)

    def __iter__(self) -> Iterator[Entry]:
        """All that may still have to be sent, in order."""
        return iter(self._entries)

    @property
    def unsettled(self) -> int:
        """Entries that have not been answered."""
        return len(self._entries) - self._settled

    @property
    def is_under_way(self) -> bool:
        """Whether something has been sent on the present connection and not been answered."""
        return self._confirmed < self._sent

    @property
    def settled_position(self) -> int:
        """The position up to which everything has been answered."""
        return self._entries[self._settled].start if self.unsettled else self.position

    @property
    def last(self) -> Entry | None:
        """The last entry, if it is kept."""
        return self._entries[-1] if self._entries else None

    @property
    def has_room(self) -> bool:
        """Whether one more entry would be sent at once."""
        return self.unsettled < self._window

    def enter(self, request: Any, nbytes: int, *, timesteps: int = 0, resets: bool = False) -> Entry:
        """One more chunk or reset, at the end."""
        entry = Entry(self._next_serial, self.position, self.experience, timesteps, resets, request, nbytes)
        self._next_serial += 1
        self.position += timesteps
        self.experience += resets
        self._entries.append(entry)
        return entry

    def due(self) -> Iterator[Entry]:
        """Takes what is to be sent now, in order; each gets a fresh request id."""
        while self._sent < len(self._entries) and not self._refused and self._may_follow():
            entry = self._entries[self._sent]
            entry.pipelined = self._sent > self._confirmed
            self._sent += 1
            self._last_request_id += 1
            entry.request_id = self._last_request_id
            self._bytes_in_flight += entry.nbytes
            yield entry

    def _may_follow(self) -> bool:
        """Whether one more may be sent behind what is in flight."""
        if self._sent == self._confirmed:
            return True
        # A reset takes no timesteps: were it refused, what follows would stand at the right position without it.
        if not self._entries[self._sent - 1].timesteps:
            return False
        return self._sent - self._confirmed < self._window and self._bytes_in_flight < self._window_bytes

    # What the server says.

    def answer(
        self, request_id: int, *, position: int, durable_position: int, experience: int, outputs: bytes, result: Any
    ) -> Entry | None:
        """The entry that is settled by an answer; None if the answer is stale or repeats one that was delivered.

        Raises CorruptState for a repeated chunk with other outputs, Internal for an answer that fits no question.
        """
        entry = self._first_in_flight()
        if entry is None or entry.request_id != request_id:
            return None
        if entry.timesteps and position != entry.end:
            raise Internal(f"the chunk that ends at {entry.end} was answered as one that ends at {position}")
        again = self._confirmed < self._settled
        if again:
            entry.check_again(outputs)
        self._confirmed += 1
        self._applied = max(self._applied, entry.after)
        self._bytes_in_flight -= entry.nbytes
        self._rewound_to = None
        self.durable_position = max(self.durable_position, durable_position)
        if not again:
            self._settled += 1
            entry.settled, entry.result, entry.outputs = True, result, outputs
            entry.nbytes += len(outputs)
            self._kept_bytes += entry.nbytes
            if not self.unsettled:
                self.experience = experience
        self._prune()
        return None if again else entry

    def refuse(self, request_id: int, error: DncError) -> None:
        """The server refused the sending of that id, and with it whatever followed."""
        for entry in self._entries[self._confirmed : self._sent]:
            if entry.request_id == request_id:
                entry.refusal = error
                self._refused = True

    @property
    def trouble(self) -> DncError | None:
        """The refusal that stands first, once everything before it has been answered."""
        entry = self._first_in_flight()
        return entry.refusal if entry is not None else None

    @property
    def applied_position(self) -> int | None:
        """The position that the server has reached with what was sent, withdrawn entries included; None if answers
        are missing that would tell."""
        return self._applied[0] if self._doubtful(self._confirmed) <= self._applied else None

    def rewind(self, expected_position: int) -> bool:
        """The server stands at an earlier position: sends again from there. False if that isn't kept any more, or if
        the server went back again at once."""
        first = next(
            (i for i, entry in enumerate(self._entries[: self._confirmed]) if entry.start >= expected_position), None
        )
        if first is None or self._entries[first].start != expected_position or expected_position == self._rewound_to:
            return False
        self._rewound_to = expected_position
        self._send_from(first)
        self._applied = self._in_doubt = self._entries[first].before
        return True

    def kept_after(self, position: int, experience: int) -> list[Entry]:
        """The answered entries from there on; none if no kept one begins there."""
        kept = self._entries[: self._settled]
        starts = [entry.before for entry in kept]
        return kept[starts.index((position, experience)) :] if (position, experience) in starts else []

    @property
    def is_whole(self) -> bool:
        """Whether everything is kept that the session ever got, since it was new."""
        first = self._entries[0].before if self._entries else (self.position, self.experience)
        return first == (0, 0)

    def start_over(self) -> None:
        """Sends everything again, to a session that is as new."""
        assert self.is_whole
        self._rewound_to = None
        self._send_from(0)
        self._applied = self._in_doubt = (0, 0)

    def resend(self) -> None:
        """Sends everything unanswered again. What was answered last and was a reset goes before it, since the position
        of what follows would not show its loss; repeated, it changes nothing."""
        first = self._settled
        position = self._entries[first].start if first < len(self._entries) else self.position
        while first and not self._entries[first - 1].timesteps and self._entries[first - 1].start == position:
            first -= 1
        self._rewound_to = None
        self._send_from(first)

    # What the user gives up.

    def withdraw(self, entry: Entry, error: DncError) -> list[Entry]:
        """Takes out an entry and all after it; returns what of it was unsettled, failed with the error."""
        if entry.serial >= self._next_serial:
            return []  # it was taken out before
        first = max(0, len(self._entries) - (self._next_serial - entry.serial))
        self._in_doubt = self._doubtful(max(first, self._confirmed))
        withdrawn = self._entries[first:]
        failed = [each for each in withdrawn if not each.settled]
        for each in failed:
            each.settled, each.failure = True, error
        self._kept_bytes -= sum(each.nbytes for each in withdrawn[: max(0, self._settled - first)])
        in_flight = self._entries[max(first, self._confirmed) : max(first, self._sent)]
        self._bytes_in_flight -= sum(each.nbytes for each in in_flight)
        del self._entries[first:]
        self._settled, self._confirmed, self._sent = (
            min(first, end) for end in (self._settled, self._confirmed, self._sent)
        )
        self._refused = any(each.refusal for each in self._entries[self._confirmed : self._sent])
        self._next_serial, self.position, self.experience = entry.serial, entry.start, entry.experience
        return failed

    def withdraw_unsettled(self, error: DncError) -> list[Entry]:
        """Takes out all that has not been answered."""
        failed = self.withdraw(self._entries[self._settled], error) if self.unsettled else []
        self.resend()
        return failed

    def _first_in_flight(self) -> Entry | None:
        return self._entries[self._confirmed] if self._confirmed < self._sent else None

    def _doubtful(self, first: int) -> tuple[int, int]:
        """Where the session may stand for all that is known, if the entries from `first` on are sent no more."""
        doubtful = self._in_doubt
        for entry in self._entries[first : self._sent]:
            if entry.refusal is not None and entry.refusal.certain:
                break  # what was sent behind it doesn't fit where the session stands
            doubtful = max(doubtful, entry.after)
        return doubtful

    def _send_from(self, first: int) -> None:
        self._in_doubt = self._doubtful(max(first, self._confirmed))
        for entry in self._entries[first : self._sent]:
            entry.request_id, entry.refusal = 0, None
        self._confirmed = self._sent = first
        self._bytes_in_flight = 0
        self._refused = False

    def _prune(self) -> None:
        """Forgets what a power loss can't undo, and the oldest of the rest when it grows too large."""
        count = 0
        while count < min(self._settled, self._confirmed):
            entry = self._entries[count]
            if not entry.is_durable(self.durable_position) and self._kept_bytes <= self._keep_bytes:
                break
            self._kept_bytes -= entry.nbytes
            count += 1
        if count:
            del self._entries[:count]
            self._settled -= count
            self._confirmed -= count
            self._sent -= count


def _agree(first: bytes, second: bytes) -> bool:
    return first == second or (
        len(first) == len(second)
        and np.allclose(np.frombuffer(first, "<f4"), np.frombuffer(second, "<f4"), rtol=0.0, atol=RECOMPUTED_TOLERANCE)
    )
