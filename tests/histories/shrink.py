"""The smallest part of a history that nothing explains.

Calls are not simply left out: without the call that made it, what a session answers would be inexplicable too. What is
taken away can only make a history easier to explain: all that was sent after some moment, all of sessions that play no
part, answers, and calls that change nothing.
"""

from collections.abc import Callable
from dataclasses import replace

from tests.histories.checker import Fault, check
from tests.histories.operations import NEVER, WRITES, Operation

MOST_TRIES = 5_000  # of a search for an order
MOST_CHECKS = 400
UNDECIDED = "undecided"


def shrunk(operations: list[Operation], fault: Fault) -> tuple[list[Operation], Fault]:
    """Such a part, and what is wrong with it."""
    checks = 0

    def fails(some: list[Operation]) -> Fault | None:
        nonlocal checks
        checks += 1
        if checks > MOST_CHECKS:
            return None
        found = check(some, MOST_TRIES)
        return found[0] if found and not found[0].what.startswith(UNDECIDED) else None

    left, fault = _of_sessions(operations, fault, fails)
    left, fault = _until(left, fault, fails)
    size = len(left) // 2
    while size:
        answered = [one for one in left if one.is_settled]
        for start in range(0, len(answered), size):
            fewer = _forgotten(left, answered[start : start + size])
            if found := fails(fewer):
                left, fault = fewer, found
        size //= 2
    return left, fault


def _of_sessions(
    operations: list[Operation], fault: Fault, fails: Callable[[list[Operation]], Fault | None]
) -> tuple[list[Operation], Fault]:
    """Of the sessions that play a part: first of the one alone, then with all that it was copied from."""
    names = {one.session for one in fault.operations} | {fault.session, ""}
    while True:
        some = [one for one in operations if one.session in names]
        if found := fails(some):
            return some, found
        calls = {one.call for one in some}
        more = names | {one.session for one in operations if one.call in calls}
        if more == names:
            return operations, fault
        names = more


def _until(
    operations: list[Operation], fault: Fault, fails: Callable[[list[Operation]], Fault | None]
) -> tuple[list[Operation], Fault]:
    """Up to the first answer that nothing explains."""
    ends = sorted({one.answered for one in operations if one.answered < NEVER})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if found := fails(_cut(operations, ends[middle])):
            high, fault = middle, found
        else:
            low = middle + 1
    return (_cut(operations, ends[high]), fault) if ends else (operations, fault)


def _cut(operations: list[Operation], end: float) -> list[Operation]:
    """What a recorder had written by then."""
    return [one if one.answered <= end else _without_answer(one) for one in operations if one.sent <= end]


def _forgotten(operations: list[Operation], some: list[Operation]) -> list[Operation]:
    """Without the answers of some, and without those of them that change nothing."""
    forgotten = set(map(id, some))
    left = [one if id(one) not in forgotten else _without_answer(one) for one in operations]
    return [one for one in left if one.is_settled or one.kind == "loss" or one.kind in WRITES]


def _without_answer(one: Operation) -> Operation:
    return replace(one, answered=NEVER, answer=None, refusal=None) if one.kind != "loss" else one
