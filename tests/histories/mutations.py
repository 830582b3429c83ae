"""Mistakes of a server, planted in a good history: each takes one answer, or one call, and makes it wrong.

A mutation yields all the ways in which it can be done to a history; one is chosen by chance.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.histories.checker import Search, histories_of
from tests.histories.operations import Operation, by_session

MOMENT_S = 1e-7
Operations = list[Operation]
Mutation = Callable[["History"], Iterator[Operations]]
MUTATIONS: dict[str, Mutation] = {}


class History:
    """A good one, and what is easily asked of it."""

    def __init__(self, operations: Operations, chance: random.Random) -> None:
        self.all = chance.sample(operations, len(operations))
        self.sessions = by_session(operations)
        self._operations = operations

    def of(self, kind: str, **answer: Any) -> Iterator[Operation]:
        """Answered operations of a kind, in any order; with these in their answers."""
        for one in self.all:
            if one.kind == kind and one.answer is not None and answer.items() <= one.answer.items():
                yield one

    def refused(self, reason: str) -> Iterator[Operation]:
        return (one for one in self.all if one.refusal is not None and one.refusal["reason"] == reason)

    def applied(self) -> Iterator[Operation]:
        return (one for one in self.of("step") if not one.answer.get("replayed"))  # type: ignore[union-attr]

    def alone(self, one: Operation) -> bool:
        """Whether nothing else was under way in its session."""
        return not any(
            other is not one and other.call != one.call and other.sent <= one.answered and one.sent <= other.answered
            for other in self.sessions[one.session]
        )

    def later(self, one: Operation, kind: str) -> Iterator[Operation]:
        """Answers of a kind that were asked for once it was answered."""
        return (each for each in self.sessions[one.session] if each.kind == kind and each.answer is not None and
                each.sent > one.answered)  # fmt: skip

    def with_(self, one: Operation, by: Operation | None) -> Operations:
        """The history with another operation in its place, or without it."""
        return [each for each in (by if each is one else each for each in self._operations) if each is not None]

    def and_(self, *more: Operation) -> Operations:
        return sorted([*self._operations, *more], key=lambda each: each.sent)

    def compared(self, kind: str) -> Iterator[Operation]:
        """Those whose bits are told elsewhere, too."""
        orders = {name: Search(name, own, 100_000).order() for name, own in self.sessions.items()}
        seen: dict[object, set[int]] = {}
        told = histories_of({name: order for name, order in orders.items() if isinstance(order, list)})
        for one, what in told:
            seen.setdefault(what, set()).add(one.call)
        shared = {one.call for one, what in told if len(seen[what]) > 1 and one.kind == kind}
        every = {one.call for one, what in told if len(seen[what]) == 1 and one.kind == kind}
        return (one for one in self.of(kind) if one.call in shared - every)


def mutation(make: Mutation) -> Mutation:
    MUTATIONS[make.__name__] = make
    return make


def told(one: Operation, **answer: Any) -> Operation:
    """The same, answered differently; what a session is told of is inside."""
    before = one.answer or {}
    if "session" in before and not answer.keys() & {"created", "changed"}:
        return replace(one, answer={**before, "session": {**before["session"], **answer}})
    return replace(one, answer={**before, **answer}, refusal=None)


def asked(one: Operation, **request: Any) -> Operation:
    return replace(one, request={**one.request, **request})


def refused(one: Operation, reason: str, **metadata: Any) -> Operation:
    metadata = {key: str(value) for key, value in metadata.items()}
    return replace(one, answer=None, refusal={"reason": reason, **metadata})


def stands(one: Operation, name: str) -> int:
    answer = one.answer or {}
    value: int = answer.get("session", answer).get(name, 0)
    return value


def copy_at(one: Operation, at: float) -> Operation:
    """The same again, as a call of its own that takes a moment."""
    return replace(one, sent=at, answered=at + MOMENT_S, call=-1)


def changed(bits: str) -> str:
    return bits[::-1] if bits != bits[::-1] else "0" + bits[1:]


# Steps.


@mutation
def a_step_is_lost(history: History) -> Iterator[Operations]:
    for one in history.applied():
        for later in history.later(one, "get"):
            if stands(later, "incarnation") == stands(one, "incarnation"):
                yield history.with_(later, told(later, position=one.request.get("position", 0)))


@mutation
def a_step_is_never_told_of(history: History) -> Iterator[Operations]:
    for one in history.applied():
        if any(stands(later, "incarnation") == stands(one, "incarnation") for later in history.later(one, "get")):
            yield history.with_(one, None)


@mutation
def a_step_is_applied_twice(history: History) -> Iterator[Operations]:
    for one in history.applied():
        again = told(one, position=stands(one, "position") + len(one.request["inputs"]))
        yield history.and_(copy_at(again, one.answered + MOMENT_S))


@mutation
def a_step_moves_too_far(history: History) -> Iterator[Operations]:
    for one in history.applied():
        yield history.with_(one, told(one, position=stands(one, "position") + 1))


@mutation
def two_steps_are_swapped(history: History) -> Iterator[Operations]:
    for one in history.applied():
        for later in history.later(one, "step"):
            if stands(later, "position") != stands(one, "position"):
                swapped = history.with_(one, replace(one, answer=later.answer))
                yield [replace(each, answer=one.answer) if each is later else each for each in swapped]


@mutation
def a_step_is_applied_in_another_life(history: History) -> Iterator[Operations]:
    for one in history.applied():
        yield history.with_(one, told(one, incarnation=stands(one, "incarnation") + 1))


@mutation
def a_step_forgets_its_reset(history: History) -> Iterator[Operations]:
    for one in history.applied():
        if one.request.get("reset_experience"):
            yield history.with_(one, told(one, experience=stands(one, "experience") - 1))


@mutation
def a_step_resets_unasked(history: History) -> Iterator[Operations]:
    for one in history.applied():
        if not one.request.get("reset_experience"):
            yield history.with_(one, told(one, experience=stands(one, "experience") + 1))


@mutation
def an_output_is_another_session_s(history: History) -> Iterator[Operations]:
    others = [one for one in history.applied() if one.answer is not None]
    for one in history.compared("step"):
        for other in others:
            outputs, theirs = one.answer["outputs"], other.answer["outputs"]  # type: ignore[index]
            if other.session != one.session and len(theirs) == len(outputs) and theirs != outputs:
                yield history.with_(one, told(one, outputs=theirs))
                break


@mutation
def a_bit_of_an_output_differs(history: History) -> Iterator[Operations]:
    for one in history.compared("step"):
        outputs = one.answer["outputs"]  # type: ignore[index]
        yield history.with_(one, told(one, outputs=[*outputs[:-1], changed(outputs[-1])]))


@mutation
def outputs_come_in_another_order(history: History) -> Iterator[Operations]:
    for one in history.compared("step"):
        outputs = one.answer["outputs"]  # type: ignore[index]
        if len(set(outputs)) > 1:
            yield history.with_(one, told(one, outputs=outputs[::-1]))


@mutation
def a_gap_is_stepped_over(history: History) -> Iterator[Operations]:
    for one in history.refused("STEP_GAP"):
        if one.kind == "step" and not one.request.get("pipelined") and "position" in one.request:
            after = one.request["position"] + len(one.request["inputs"])
            stood = {"incarnation": one.request["incarnation"], "position": after, "outputs": one.request["inputs"],
                     "experience": int(one.refusal["experience"])}  # type: ignore[index]  # fmt: skip
            yield history.with_(one, told(one, **stood))


@mutation
def a_gap_is_seen_where_none_is(history: History) -> Iterator[Operations]:
    for one in history.applied():
        if history.alone(one) and "position" in one.request and not one.request.get("pipelined"):
            where = one.request["position"]
            yield history.with_(one, refused(one, "STEP_GAP", expected_position=where, experience=0, got=where))


@mutation
def a_gap_tells_a_wrong_position(history: History) -> Iterator[Operations]:
    for one in history.refused("STEP_GAP"):
        wrong = int(one.refusal["expected_position"]) + 1000  # type: ignore[index]
        yield history.with_(one, replace(one, refusal={**(one.refusal or {}), "expected_position": str(wrong)}))


# Stored replies.


@mutation
def a_stored_reply_is_told_as_new(history: History) -> Iterator[Operations]:
    for one in history.of("step", replayed=True):
        yield history.with_(one, told(one, replayed=False))


@mutation
def a_new_reply_is_told_as_stored(history: History) -> Iterator[Operations]:
    for one in history.applied():
        yield history.with_(one, told(one, replayed=True))


@mutation
def a_stored_reply_goes_to_another_writer(history: History) -> Iterator[Operations]:
    for one in history.of("step", replayed=True):
        yield history.with_(one, asked(one, writer_id=one.request.get("writer_id", 0) + 1000))


@mutation
def a_stored_reply_goes_to_other_inputs(history: History) -> Iterator[Operations]:
    for one in history.of("step", replayed=True):
        yield history.with_(one, asked(one, inputs=[*map(changed, one.request["inputs"])]))


@mutation
def a_stored_reply_goes_to_a_longer_chunk(history: History) -> Iterator[Operations]:
    for one in history.of("step", replayed=True):
        yield history.with_(one, asked(one, inputs=[*one.request["inputs"], one.request["inputs"][0]]))


@mutation
def a_stored_reply_is_of_another_position(history: History) -> Iterator[Operations]:
    for one in history.of("step", replayed=True):
        yield history.with_(one, told(one, position=stands(one, "position") + 1))


@mutation
def a_stored_reply_goes_to_another_life(history: History) -> Iterator[Operations]:
    for one in history.of("step", replayed=True):
        yield history.with_(one, asked(one, incarnation=stands(one, "incarnation") + 1))


@mutation
def a_stored_reply_has_other_bits(history: History) -> Iterator[Operations]:
    for one in history.of("step", replayed=True):
        yield history.with_(one, told(one, outputs=[*map(changed, one.answer["outputs"])]))  # type: ignore[index]


@mutation
def another_writer_is_told_no_conflict(history: History) -> Iterator[Operations]:
    for one in history.refused("STEP_CONFLICT"):
        if one.kind == "step" and "position" in one.request and not one.request.get("pipelined"):
            after = one.request["position"] + len(one.request["inputs"])
            stood = {"incarnation": one.request["incarnation"], "position": after, "replayed": True,
                     "experience": int(one.refusal["experience"]), "outputs": one.request["inputs"]}  # type: ignore[index]  # fmt: skip
            yield history.with_(one, told(one, **stood))


@mutation
def a_writer_conflicts_with_itself(history: History) -> Iterator[Operations]:
    done = {_chunk(one) for one in history.applied()}
    for one in history.refused("STEP_CONFLICT"):
        own = asked(one, writer_id=one.request.get("writer_id", 0) - 100)
        if one.kind == "step" and not one.request.get("pipelined") and _chunk(own) in done:
            yield history.with_(one, own)


def _chunk(one: Operation) -> tuple[object, ...]:
    names = ("incarnation", "position", "writer_id", "reset_experience")
    return (one.session, *(one.request.get(name) for name in names), *one.request.get("inputs", ()))


@mutation
def a_conflict_tells_a_wrong_position(history: History) -> Iterator[Operations]:
    for one in history.refused("STEP_CONFLICT"):
        yield history.with_(one, replace(one, refusal={**(one.refusal or {}), "expected_position": "100000"}))


# Time.


@mutation
def an_answer_comes_before_its_call(history: History) -> Iterator[Operations]:
    for one in history.applied():
        yield history.with_(one, replace(one, answered=one.sent - MOMENT_S))


@mutation
def an_answer_is_from_the_future(history: History) -> Iterator[Operations]:
    for one in history.applied():
        for later in history.later(one, "get"):
            if stands(later, "incarnation") == stands(one, "incarnation"):
                early = copy_at(later, one.sent - 2 * MOMENT_S)
                yield history.and_(early)


@mutation
def an_answer_is_out_of_date(history: History) -> Iterator[Operations]:
    for one in history.of("get"):
        for later in history.later(one, "step"):
            if not later.answer.get("replayed"):  # type: ignore[union-attr]
                yield history.and_(copy_at(one, later.answered + MOMENT_S))


@mutation
def a_step_is_applied_before_the_one_it_follows_was_sent(history: History) -> Iterator[Operations]:
    for one in history.applied():
        for later in history.later(one, "step"):
            if not later.answer.get("replayed") and stands(later, "incarnation") == stands(one, "incarnation"):  # type: ignore[union-attr]
                early = replace(later, sent=one.sent - 2 * MOMENT_S, answered=one.sent - MOMENT_S)
                yield sorted(history.with_(later, early), key=lambda each: each.sent)


# Resets.


@mutation
def a_reset_is_forgotten(history: History) -> Iterator[Operations]:
    for one in history.of("reset", changed=True):
        for later in history.later(one, "get"):
            if stands(later, "incarnation") == stands(one, "incarnation"):
                yield history.with_(later, told(later, experience=stands(one, "experience") - 1))


@mutation
def a_reset_is_done_twice(history: History) -> Iterator[Operations]:
    for one in history.of("reset", changed=True):
        again = copy_at(told(one, experience=stands(one, "experience") + 1), one.answered + MOMENT_S)
        yield history.and_(again)


@mutation
def a_reset_nobody_sent(history: History) -> Iterator[Operations]:
    for one in history.of("reset", changed=True):
        if any(stands(later, "incarnation") == stands(one, "incarnation") for later in history.later(one, "get")):
            yield history.with_(one, None)


@mutation
def a_reset_is_told_as_done_before(history: History) -> Iterator[Operations]:
    for one in history.of("reset", changed=True):
        yield history.with_(one, replace(told(one, changed=False), answer={"session": one.answer["session"]}))  # type: ignore[index]


@mutation
def a_repeated_reset_is_another_writer_s(history: History) -> Iterator[Operations]:
    for one in history.of("reset"):
        if not one.answer.get("changed") and "experience" in one.request:  # type: ignore[union-attr]
            yield history.with_(one, asked(one, writer_id=one.request.get("writer_id", 0) + 1000))


# Lives.


@mutation
def a_delete_is_undone(history: History) -> Iterator[Operations]:
    for one in history.of("delete", deleted=True):
        for before in history.sessions[one.session]:
            if before.kind == "get" and before.answer is not None and before.answered < one.sent:
                yield history.and_(copy_at(before, one.answered + MOMENT_S))


@mutation
def a_session_is_deleted_twice(history: History) -> Iterator[Operations]:
    for one in history.of("delete"):
        if not one.answer.get("deleted") and history.alone(one):  # type: ignore[union-attr]
            yield history.with_(one, told(one, deleted=True))


@mutation
def a_delete_is_told_as_done_before(history: History) -> Iterator[Operations]:
    for one in history.of("delete", deleted=True):
        if history.alone(one):
            yield history.with_(one, told(one, deleted=False))


@mutation
def a_tombstone_is_dropped(history: History) -> Iterator[Operations]:
    for one in history.refused("SESSION_NOT_FOUND"):
        if "why" in one.refusal:  # type: ignore[operator]
            yield history.with_(one, refused(one, "SESSION_NOT_FOUND"))


@mutation
def a_tombstone_of_nobody(history: History) -> Iterator[Operations]:
    for one in history.refused("SESSION_NOT_FOUND"):
        if "why" not in one.refusal:  # type: ignore[operator]
            yield history.with_(one, refused(one, "SESSION_NOT_FOUND", why="deleted"))


@mutation
def a_living_session_is_not_found(history: History) -> Iterator[Operations]:
    for one in history.of("get"):
        if not any(each.call == one.call and each is not one for each in history.sessions[one.session]):  # as one half
            yield history.with_(one, refused(one, "SESSION_NOT_FOUND", why="deleted"))


@mutation
def a_session_is_made_over_another(history: History) -> Iterator[Operations]:
    for one in history.of("create", created=True):
        again = replace(told(one), answer={"created": True, "session": {"incarnation": 7}})
        for later in history.later(one, "step"):
            if stands(later, "incarnation") == stands(one, "incarnation"):
                yield history.and_(copy_at(again, later.sent - 2 * MOMENT_S))


@mutation
def a_session_lives_on_under_another_incarnation(history: History) -> Iterator[Operations]:
    for one in history.of("get"):
        yield history.with_(one, told(one, incarnation=stands(one, "incarnation") + 1))


@mutation
def a_session_exists_that_does_not(history: History) -> Iterator[Operations]:
    for one in history.of("create", created=True):
        yield history.with_(one, refused(one, "SESSION_EXISTS"))


@mutation
def a_chunk_for_a_former_life_is_applied(history: History) -> Iterator[Operations]:
    for one in history.refused("SESSION_REPLACED"):
        if one.kind == "step":
            metadata = one.refusal or {}
            after = int(metadata["expected_position"]) + len(one.request["inputs"])
            stood = {"incarnation": int(metadata["incarnation"]), "position": after}
            yield history.with_(one, told(one, **stood))


@mutation
def a_session_is_called_replaced_that_is_not(history: History) -> Iterator[Operations]:
    for one in history.applied():
        yield history.with_(one, refused(one, "SESSION_REPLACED", incarnation=stands(one, "incarnation")))


# Copies, and looks.


@mutation
def a_fork_is_of_another_position(history: History) -> Iterator[Operations]:
    for one in history.of("copied"):
        yield history.with_(one, told(one, position=stands(one, "position") + 1))


@mutation
def a_fork_shares_its_source_s_steps(history: History) -> Iterator[Operations]:
    """A step of the fork moves its source."""
    for one in history.of("copied"):
        for later in history.later(one, "get"):
            yield history.with_(later, told(later, position=stands(later, "position") + 1))


@mutation
def a_fork_begins_where_its_source_was_later(history: History) -> Iterator[Operations]:
    """Its own steps give what the source gave after another history."""
    for one in history.compared("step"):
        if "imitation" in one.session:
            yield history.with_(one, told(one, outputs=[*map(changed, one.answer["outputs"])]))  # type: ignore[index]


@mutation
def a_fork_is_made_before_its_source_stood_there(history: History) -> Iterator[Operations]:
    for one in history.applied():
        for later in history.later(one, "copied"):
            reaches = stands(later, "position") == stands(one, "position")
            if reaches and later.request.get("incarnation") == stands(one, "incarnation"):
                yield history.and_(copy_at(later, one.sent - 2 * MOMENT_S))


@mutation
def an_import_stands_elsewhere(history: History) -> Iterator[Operations]:
    for one in history.of("get"):
        if "blob" in one.request:
            yield history.with_(one, told(one, position=stands(one, "position") + 1))


@mutation
def an_export_has_other_bits(history: History) -> Iterator[Operations]:
    for one in history.compared("export"):
        yield history.with_(one, told(one, state=changed(one.answer["state"])))  # type: ignore[index]


@mutation
def an_export_is_of_another_moment(history: History) -> Iterator[Operations]:
    for one in history.of("export"):
        yield history.with_(one, told(one, experience=stands(one, "experience") + 1))


@mutation
def a_dump_has_other_bits(history: History) -> Iterator[Operations]:
    for one in history.compared("dump"):
        arrays = {name: changed(bits) for name, bits in one.answer["arrays"].items()}  # type: ignore[index]
        yield history.with_(one, told(one, arrays=arrays))


@mutation
def a_dump_is_of_another_position(history: History) -> Iterator[Operations]:
    for one in history.of("dump"):
        if "position" in one.request:
            yield history.with_(one, told(one, position=stands(one, "position") + 1))


@mutation
def a_dump_is_of_another_experience(history: History) -> Iterator[Operations]:
    for one in filter(history.alone, history.of("dump")):
        yield history.with_(one, told(one, experience=stands(one, "experience") + 1))


@mutation
def a_replay_has_other_outputs(history: History) -> Iterator[Operations]:
    for one in history.of("replay"):
        yield history.with_(one, told(one, outputs=[changed(one.answer["outputs"][0])]))  # type: ignore[index]


@mutation
def a_replay_has_other_inputs(history: History) -> Iterator[Operations]:
    for one in history.of("replay"):
        yield history.with_(one, told(one, inputs=[changed(one.answer["inputs"][0])]))  # type: ignore[index]


@mutation
def a_replay_is_of_another_experience(history: History) -> Iterator[Operations]:
    for one in history.of("replay"):
        yield history.with_(one, told(one, experience=stands(one, "experience") + 1))


# Durability.


@mutation
def more_is_durable_than_there_is(history: History) -> Iterator[Operations]:
    for one in history.of("get"):
        yield history.with_(one, told(one, durable_position=stands(one, "position") + 1))


@mutation
def a_power_loss_takes_what_was_durable(history: History) -> Iterator[Operations]:
    for one in history.of("get"):
        if stands(one, "durable_position") == stands(one, "position") > 0 and _is_last(history, one):
            at = one.answered + MOMENT_S
            loss = Operation("loss", "", at, {}, at + MOMENT_S, {})
            yield history.and_(
                loss, copy_at(told(one, position=0, durable_position=0, experience=0), at + 3 * MOMENT_S)
            )


@mutation
def a_kill_takes_what_was_answered(history: History) -> Iterator[Operations]:
    for one in history.of("get"):
        before = history.sessions[one.session]
        earlier = [each for each in before if each.kind == "get" and each.answer and each.answered < one.sent
                   and stands(each, "incarnation") == stands(one, "incarnation")
                   and stands(each, "position") < stands(one, "position")]  # fmt: skip
        for each in earlier:
            yield history.and_(copy_at(each, one.answered + MOMENT_S))


def _is_last(history: History, one: Operation) -> bool:
    return all(each.answered <= one.answered for each in history.sessions[one.session])
