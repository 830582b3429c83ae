"""Whether some order of all operations of each session explains all answers, and equal histories gave equal bits.

Within a session the search is small. What an answer tells (incarnation, position, experience) leaves an applied chunk
or reset one moment, and what changes nothing may come as early as it is right. Left to try are creations and deletes
that overlap, calls without an answer, which may have been applied at any time since or never, and how far a power loss
went.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from tests.histories.operations import NEVER, WRITES, Operation, by_session
from tests.histories.session import Moment, Seen, ended, explained, made, reset, stepped

MOST_TRIES = 200_000
ASIDE = "interface"  # what a dump has of the last timestep, not of the state


@dataclass(frozen=True, slots=True)
class Fault:
    """What nothing explains: operations that contradict the rest, or each other."""

    session: str
    what: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        return "\n".join([f"session {self.session}: {self.what}", *(f"  {one}" for one in self.operations)])


class Explained(NamedTuple):
    """An operation in its place."""

    operation: Operation
    seen: Seen


def check(operations: Iterable[Operation], most_tries: int = MOST_TRIES) -> list[Fault]:
    """What is wrong with a history: of each session, the first thing."""
    operations = list(operations)
    early = [one for one in operations if one.answered < one.sent]
    if early:
        return [Fault(one.session, "it was answered before it was sent", (one,)) for one in early]
    faults, orders = [], {}
    for session, own in by_session(operations).items():
        order = Search(session, own, most_tries).order()
        if isinstance(order, Fault):
            faults.append(order)
        else:
            orders[session] = order
    return faults or list(_contents(orders))


class _State(NamedTuple):
    """Where a search is: the session, what a power loss may not take, and which operations are in their place."""

    now: Moment
    kept: int  # how deep the past must stay
    base: int  # all settled operations before this one
    further: frozenset[int]  # and these
    used: frozenset[int]  # of those without an answer
    trail: tuple["_State", Explained] | None

    @property
    def key(self) -> tuple[object, ...]:
        return id(self.now), self.kept, self.base, self.further, self.used


class Search:
    """For an order of one session's operations."""

    def __init__(self, session: str, operations: list[Operation], most_tries: int) -> None:
        self._session = session
        self._settled = [one for one in operations if one.is_settled or one.kind == "loss"]
        self._open = [one for one in operations if not one.is_settled and one.kind in WRITES]
        self._tries = most_tries
        self._losses = [one for one in operations if one.kind == "loss"]
        told = [one for one in operations if one.answer is not None]
        known = {one.answer["session"]["incarnation"] for one in told if one.kind == "create" and one.answer}
        self._lowest: dict[int, tuple[int, int]] = {}  # (position, experience) by incarnations whose begin is unknown
        for one in told:
            stands = (one.answer or {}).get("session", one.answer or {})
            if (number := stands.get("incarnation", 0)) and number not in known:
                timesteps = len(one.request.get("inputs", ()))
                before = stands.get("position", 0) - timesteps, stands.get("experience", 0)
                self._lowest[number] = min(before, self._lowest.get(number, before))

    def order(self) -> list[Explained] | Fault:
        """All settled operations in an order that explains them, with what they need of the others."""
        states = [_State(Moment(), 0, 0, frozenset(), frozenset(), None)]
        furthest, visited = states[0], set()
        while states:
            state = self._straight(states.pop())
            if state.base == len(self._settled):
                return self._trail(state)
            if state.base + len(state.further) >= furthest.base + len(furthest.further):
                furthest = state
            if state.key in visited:
                continue
            visited.add(state.key)
            self._tries -= 1
            if self._tries < 0:
                return Fault(self._session, "undecided: too many orders are possible", ())
            states += reversed(list(self._choices(state)))
        waiting = tuple(self._settled[number] for number in self._minimal(furthest))
        return Fault(self._session, f"no order explains this, of a session that is: {furthest.now}", waiting)

    def _minimal(self, state: _State) -> list[int]:
        """Settled operations of which each may come next: none was answered before another was sent."""
        found, until = [], NEVER
        for number in range(state.base, len(self._settled)):
            if number in state.further:
                continue
            one = self._settled[number]
            if one.sent > until:
                break
            found.append(number)
            until = min(until, one.answered)
        return [number for number in found if self._settled[number].sent <= until]

    def _straight(self, state: _State) -> _State:
        """As far on as there is nothing to choose."""
        while True:
            write: tuple[int, Seen] | None = None
            moved = False
            for number in self._minimal(state):
                one = self._settled[number]
                if one.kind == "loss" or (seen := explained(one, state.now)) is None:
                    continue
                if seen.after is state.now:
                    if not (_durable(one) and self._near_loss(one)):
                        state, moved = self._placed(state, number, one, seen), True
                elif one.kind in ("step", "reset") and not self._near_loss(one):
                    write = number, seen
            if moved:  # so that others may come next
                continue
            if write is None:
                return state
            state = self._placed(state, write[0], self._settled[write[0]], write[1])

    def _near_loss(self, one: Operation) -> bool:
        return any(one.sent <= loss.answered and loss.sent <= one.answered for loss in self._losses)

    def _choices(self, state: _State) -> Iterator[_State]:
        minimal = self._minimal(state)
        until = min((self._settled[number].answered for number in minimal), default=NEVER)
        for number in sorted(minimal, key=lambda number: self._settled[number].answered):
            one = self._settled[number]
            if one.kind != "loss" and (seen := explained(one, state.now)) is not None:
                yield self._placed(state, number, one, seen)
        for number, one in enumerate(self._open):
            if number not in state.used and one.sent <= until:
                for after in self._applied(one, state.now):
                    yield state._replace(now=after, used=state.used | {number})
        for number in minimal:
            one = self._settled[number]
            if one.kind == "loss":
                kept = 0 if one.request.get("all") else state.kept
                left: Moment | None = state.now
                while left is not None and left.depth >= kept:
                    yield self._advanced(state._replace(now=left, kept=kept), number)
                    left = left.past

    def _applied(self, one: Operation, now: Moment) -> Iterator[Moment]:
        """What the session may be after an operation without an answer."""
        if one.kind in ("create", "made"):
            for number, stands in self._lowest.items() if not now.lives else ():
                if one.kind == "made":
                    yield made(one, now, number, stands)
                else:
                    yield now.after("made", number, 0, 0, "new")
            if not now.lives and one.kind == "create":  # nobody ever saw more than that it was there
                yield now.after("made", 0, 0, 0, "new")
        elif one.kind == "delete":
            if now.lives and one.request.get("incarnation", now.incarnation) == now.incarnation:
                yield ended(now, "deleted")
        elif (after := (stepped if one.kind == "step" else reset)(one.request, now)) is not None:
            yield after

    def _placed(self, state: _State, number: int, one: Operation, seen: Seen) -> _State:
        kept = state.kept
        if durable := _durable(one):
            reached = takewhile(lambda moment: moment.position >= durable, seen.after.life())
            kept = max(kept, min(moment.depth for moment in reached))
        state = state._replace(now=seen.after, kept=kept, trail=(state, Explained(one, seen)))
        return self._advanced(state, number)

    def _advanced(self, state: _State, number: int) -> _State:
        base, further = state.base, state.further | {number}
        while base in further:
            further -= {base}
            base += 1
        return state._replace(base=base, further=further)

    def _trail(self, state: _State) -> list[Explained]:
        order = []
        step = state.trail
        while step is not None:
            order.append(step[1])
            step = step[0].trail
        return order[::-1]


def _durable(one: Operation) -> int:
    answer = one.answer or {}
    told: int = answer.get("session", answer).get("durable_position", 0)
    # What is more than it tells of itself is held by an operation of its own.
    return told if one.kind != "step" or told <= answer.get("position", 0) else 0


def _contents(orders: dict[str, list[Explained]]) -> Iterator[Fault]:
    """Where equal histories of inputs, resets and copies gave different bits."""
    histories = _Histories(orders)
    known: dict[object, tuple[str, Operation]] = {}
    for session, order in orders.items():
        for one, seen in order:
            for what, value in histories.told(one, seen):
                before, first = known.setdefault(what, (value, one))
                if before != value:
                    yield Fault(session, f"{one.kind} tells other bits than the same history gave before", (first, one))
                    break
            else:
                continue
            break


def histories_of(orders: dict[str, list[Explained]]) -> list[tuple[Operation, object]]:
    """Each operation with the names of what it tells bits of; several operations may tell of the same."""
    histories = _Histories(orders)
    return [(one, what) for order in orders.values() for one, seen in order for what, _ in histories.told(one, seen)]


class _Histories:
    """Names for what a session has been through: equal ones have equal states."""

    def __init__(self, orders: dict[str, list[Explained]]) -> None:
        self._names: dict[Moment, list[object]] = {}  # after each timestep
        placed = [each for order in orders.values() for each in order]
        self._origins = {("fork", one.call): seen for one, seen in placed if one.kind == "copied" and one.answer} | {
            ("blob", one.answer["blob"]): seen for one, seen in placed if one.kind == "export" and one.answer
        }
        self._numbers: dict[object, int] = {}

    def told(self, one: Operation, seen: Seen) -> Iterator[tuple[object, str]]:
        """What an answer says, as names of moments and the bits there."""
        answer = one.answer
        if answer is None:
            return
        if one.kind == "step":
            for state, output in zip(self.names(seen.moment), answer.get("outputs", ()), strict=True):
                yield ("output", state), output
        elif one.kind == "dump":
            state, cells = self.name(seen.moment, seen.position), one.request.get("max_cells")
            for name, bits in answer["arrays"].items():
                if not name.startswith(ASIDE):
                    yield (name, cells, state), bits
        elif one.kind == "replay":
            state = self.name(seen.moment, seen.position)
            yield ("output", state), answer["outputs"][0]
            yield ("input", state), seen.moment.key[0][seen.position - seen.moment.position - 1]
            yield ("input", state), answer["inputs"][0]
        elif one.kind == "export":
            yield ("whole", self.name(seen.moment, seen.position)), answer.get("state", "")

    def name(self, moment: Moment, position: int) -> object:
        return self.names(moment)[position - moment.position - 1]

    def names(self, moment: Moment) -> list[object]:
        if moment not in self._names:
            missing = list(self._unnamed(moment))
            for one in reversed(missing):
                self._names[one] = self._made(one) if one.kind == "made" else self._after(one)
        return self._names[moment]

    def _unnamed(self, moment: Moment) -> Iterator[Moment]:
        for one in moment.life():
            if one in self._names:
                return
            yield one

    def _made(self, moment: Moment) -> list[object]:
        origin = self._origins.get(moment.key)
        return [self.name(origin.moment, origin.position) if origin is not None else moment.key]

    def _after(self, moment: Moment) -> list[object]:
        assert moment.past is not None
        state = self._names[moment.past][-1]
        if moment.kind == "reset":
            return [("new",) if moment.key[0] else self._number(state, "reset")]
        timesteps, resets, _ = moment.key
        names: list[object] = []
        state = self._number(state, "reset") if resets else state
        for row in timesteps:
            state = self._number(state, row)
            names.append(state)
        return names

    def _number(self, state: object, then: str) -> int:
        return self._numbers.setdefault((state, then), len(self._numbers))
