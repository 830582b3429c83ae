"""The ledger against a model of a server, with every kind of loss in between."""

import hashlib
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dnc_serve.client.errors import CorruptState, DncError, QueueFull, StepConflict, StepGap, Unavailable
from dnc_serve.client.ledger import Entry, Ledger


@dataclass(frozen=True)
class Operation:
    """What a test sends: a chunk, or a reset if it has no timesteps."""

    content: str
    timesteps: int
    resets: bool


@dataclass
class ModelServer:
    """What a session is, in a few lines: each output is a hash of all that was ever applied."""

    applied: list[Operation] = field(default_factory=list)
    durable: int = 0  # operations

    def position(self, operations: int | None = None) -> int:
        return sum(operation.timesteps for operation in self.applied[:operations])

    def experience(self, operations: int | None = None) -> int:
        return sum(operation.resets for operation in self.applied[:operations])

    def outputs(self, operations: int) -> bytes:
        return hashlib.blake2b(repr(self.applied[:operations]).encode(), digest_size=8).digest()

    def take(self, operation: Operation, start: int, experience: int) -> tuple[int, bytes] | DncError:
        """The position after the operation and its outputs, or why it is refused; as the design has it."""
        if not operation.timesteps:
            if experience < self.experience():
                return self.position(), b""
            if start > self.position() or experience > self.experience():
                return self.gap()
            if start < self.position():
                return StepConflict("the session went on before this reset came")
        elif start > self.position():
            return self.gap()
        elif start < self.position():
            for index, earlier in enumerate(self.applied):
                if earlier.timesteps and self.position(index) == start:
                    if earlier != operation:
                        return StepConflict("another chunk was applied")
                    return self.position(index + 1), self.outputs(index + 1)
            return StepConflict("no chunk began there")
        self.applied.append(operation)
        return self.position(), self.outputs(len(self.applied)) if operation.timesteps else b""

    def gap(self) -> StepGap:
        return StepGap("ahead", metadata={"expected_position": str(self.position())})

    def lose_power(self) -> None:
        del self.applied[self.durable :]


class Losses(RuleBasedStateMachine):
    """Sends, answers, cut connections, refusals, restarts and power losses in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.server = ModelServer()
        self.ledger = Ledger(window=4)
        self.requests: deque[tuple[int, Operation, int, int]] = deque()
        self.answers: deque[tuple[int, tuple[int, bytes] | DncError, int]] = deque()
        self.entered: list[Entry] = []
        self.delivered: list[bytes] = []

    @rule(timesteps=st.integers(1, 3), resets=st.booleans())
    def enter_chunk(self, timesteps: int, resets: bool) -> None:
        self.enter(Operation(f"chunk {len(self.entered)}", timesteps, resets))

    @rule()
    def enter_reset(self) -> None:
        self.enter(Operation(f"reset {len(self.entered)}", 0, True))

    def enter(self, operation: Operation) -> None:
        entry = self.ledger.enter(operation, 100, timesteps=operation.timesteps, resets=operation.resets)
        self.entered.append(entry)

    @rule()
    def send(self) -> None:
        for entry in self.ledger.due():
            self.requests.append((entry.request_id, entry.request, entry.start, entry.experience))

    @precondition(lambda self: self.requests)
    @rule()
    def serve(self) -> None:
        request_id, operation, start, experience = self.requests.popleft()
        self.answers.append((request_id, self.server.take(operation, start, experience), self.durable_position()))

    @precondition(lambda self: self.requests)
    @rule()
    def refuse_for_now(self) -> None:
        request_id, *_ = self.requests.popleft()
        self.answers.append((request_id, QueueFull("full"), self.durable_position()))

    @precondition(lambda self: self.answers)
    @rule()
    def deliver(self) -> None:
        request_id, answer, durable_position = self.answers.popleft()
        if isinstance(answer, DncError):
            self.ledger.refuse(request_id, answer)
        else:
            position, outputs = answer
            entry = self.ledger.answer(
                request_id,
                position=position,
                durable_position=durable_position,
                experience=self.server.experience(),
                outputs=outputs,
                result=outputs,
            )
            if entry is not None:
                self.delivered.append(entry.result)
        trouble = self.ledger.trouble
        if isinstance(trouble, StepGap):
            assert self.ledger.rewind(int(trouble.metadata["expected_position"])), "nothing kept is ever missing"
        elif trouble is not None:
            assert isinstance(trouble, QueueFull), trouble
            self.ledger.resend()

    @rule(served=st.integers(0, 4))
    def cut_the_connection(self, served: int) -> None:
        """The server may still apply some of what was on the way; its answers are lost."""
        for _ in range(min(served, len(self.requests))):
            self.serve()
        self.requests.clear()
        self.answers.clear()
        self.ledger.resend()

    @rule(behind=st.integers(0, 3))
    def sync(self, behind: int) -> None:
        self.server.durable = max(self.server.durable, len(self.server.applied) - behind)

    @rule()
    def lose_power(self) -> None:
        self.cut_the_connection(0)
        self.server.lose_power()

    @precondition(lambda self: not self.server.durable)
    @rule()
    def lose_the_session(self) -> None:
        """Not even that it was made had been synced: it is made again, as new."""
        self.lose_power()
        assert self.ledger.is_whole
        self.ledger.start_over()

    def durable_position(self) -> int:
        return self.server.position(self.server.durable)

    @invariant()
    def nothing_is_lost_doubled_or_reordered(self) -> None:
        reference = ModelServer()
        for entry in self.entered[: len(self.delivered)]:
            reference.take(entry.request, reference.position(), reference.experience())
        expected = [
            reference.outputs(index + 1) if operation.timesteps else b""
            for index, operation in enumerate(reference.applied)
        ]
        assert self.delivered == expected

    @invariant()
    def the_window_holds(self) -> None:
        assert len(self.requests) + len(self.answers) <= 3 * 4, "stale ones included"

    def teardown(self) -> None:
        """Without further losses, everything is answered in the end."""
        for _ in range(20 * len(self.entered) + 20):
            self.send()
            while self.requests:
                self.serve()
            while self.answers:
                self.deliver()
        assert len(self.delivered) == len(self.entered)
        self.nothing_is_lost_doubled_or_reordered()


Losses.TestCase.settings = settings(max_examples=200, stateful_step_count=50)
TestLosses = Losses.TestCase


def test_a_reset_that_a_power_loss_undid_is_sent_again_before_what_follows() -> None:
    """Positions alone would not show its loss: a reset takes no timesteps."""
    losses = Losses()
    losses.enter_chunk(2, False)
    losses.send()
    losses.serve()
    losses.deliver()
    losses.sync(0)
    losses.enter_reset()
    losses.send()
    losses.serve()
    losses.deliver()
    losses.lose_power()
    losses.enter_chunk(1, False)
    losses.teardown()
    assert [operation.content for operation in losses.server.applied] == ["chunk 0", "reset 1", "chunk 2"]


def test_nothing_overtakes_a_reset_that_is_refused() -> None:
    """It takes no timesteps, so what follows would be at the right position without it."""
    losses = Losses()
    losses.enter_reset()
    losses.enter_chunk(1, False)
    losses.send()
    losses.refuse_for_now()
    losses.teardown()
    assert [operation.content for operation in losses.server.applied] == ["reset 0", "chunk 1"]


def _answer(ledger: Ledger, entry: Entry, durable_position: int = 0, outputs: bytes = b"") -> Entry | None:
    return ledger.answer(
        entry.request_id,
        position=entry.end,
        durable_position=durable_position,
        experience=0,
        outputs=outputs,
        result=outputs,
    )


def _chunk(ledger: Ledger, timesteps: int = 1, nbytes: int = 4) -> Entry:
    return ledger.enter("chunk", nbytes, timesteps=timesteps)


def test_window_holds_back_what_is_too_much() -> None:
    ledger = Ledger(window=2)
    entries = [_chunk(ledger) for _ in range(5)]
    assert list(ledger.due()) == entries[:2]
    assert not list(ledger.due())
    assert not ledger.has_room
    _answer(ledger, entries[0])
    assert list(ledger.due()) == entries[2:3]


def test_one_chunk_goes_out_however_large() -> None:
    ledger = Ledger(window=8, window_bytes=10)
    entries = [_chunk(ledger, nbytes=100) for _ in range(2)]
    assert list(ledger.due()) == entries[:1]


def test_withdrawn_steps_leave_the_position_as_before() -> None:
    ledger = Ledger(position=10)
    done = _chunk(ledger, 2)
    list(ledger.due())
    _answer(ledger, done)
    first, second = _chunk(ledger, 3), _chunk(ledger, 4)
    list(ledger.due())
    _answer(ledger, first)
    failure = Unavailable("gone")
    assert ledger.withdraw(first, failure) == [second]
    assert second.failure is failure
    assert (ledger.position, ledger.unsettled) == (12, 0)
    again = _chunk(ledger, 3)
    assert (again.start, list(ledger.due())) == (12, [again])


def test_stale_answers_change_nothing() -> None:
    ledger = Ledger()
    entry = _chunk(ledger)
    list(ledger.due())
    stale = entry.request_id
    ledger.resend()
    list(ledger.due())
    assert ledger.answer(stale, position=1, durable_position=0, experience=0, outputs=b"", result=None) is None
    assert _answer(ledger, entry) is entry


def test_other_outputs_after_a_power_loss_are_told() -> None:
    ledger = Ledger()
    first, second = _chunk(ledger), _chunk(ledger)
    list(ledger.due())
    _answer(ledger, first, outputs=b"\0\0\x80?")
    assert ledger.rewind(0)
    list(ledger.due())
    with pytest.raises(CorruptState, match="0 to 1"):
        _answer(ledger, first, outputs=b"\0\0\0@")
    assert not second.settled


def test_what_was_dropped_for_its_size_cannot_be_sent_again() -> None:
    ledger = Ledger(keep_bytes=10)
    entries = [_chunk(ledger, nbytes=8) for _ in range(4)]
    list(ledger.due())
    for entry in entries[:3]:
        _answer(ledger, entry)
    assert not ledger.rewind(0)
    assert ledger.rewind(2)


def test_only_what_began_with_nothing_is_whole() -> None:
    ledger = Ledger(keep_bytes=10)
    for nbytes in (4, 100):
        assert ledger.is_whole
        entry = _chunk(ledger, nbytes=nbytes)
        assert list(ledger.due()) == [entry]
        _answer(ledger, entry)
    assert not ledger.is_whole
    assert not Ledger(experience=1).is_whole
    assert not Ledger(position=1).is_whole


def test_a_server_that_goes_back_again_at_once_is_not_followed_forever() -> None:
    ledger = Ledger()
    first, _ = _chunk(ledger), _chunk(ledger)
    list(ledger.due())
    _answer(ledger, first)
    assert ledger.rewind(0)
    assert not ledger.rewind(0)
