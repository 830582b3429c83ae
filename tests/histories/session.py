"""One session as the contract has it: where it stands, how it came there, and what it answers to each operation."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.histories.operations import Operation

RESET_ALL = 2


class Moment:
    """A session right after a write; the moments before it are its past. The same past is the same object."""

    __slots__ = ("depth", "experience", "incarnation", "key", "kind", "past", "position", "then")

    def __init__(
        self, kind: str = "never", incarnation: int = 0, position: int = 0, experience: int = 0,
        key: tuple[Any, ...] = (), past: "Moment | None" = None,
    ) -> None:  # fmt: skip
        self.kind, self.past, self.key = kind, past, key  # never, made, step, reset or ended; what else tells it apart
        self.incarnation, self.position, self.experience = incarnation, position, experience
        self.depth: int = 0 if past is None else past.depth + 1
        self.then: dict[tuple[Any, ...], Moment] = {}

    def after(self, kind: str, incarnation: int, position: int, experience: int, *key: Any) -> "Moment":
        whole = (kind, incarnation, position, experience, *key)
        if whole not in self.then:
            self.then[whole] = Moment(kind, incarnation, position, experience, key, self)
        return self.then[whole]

    @property
    def lives(self) -> bool:
        return self.kind not in ("never", "ended")

    def life(self) -> Iterator["Moment"]:
        """This incarnation's, the latest first."""
        moment: Moment | None = self
        while moment is not None and moment.lives and moment.incarnation == self.incarnation:
            yield moment
            moment = moment.past if moment.kind != "made" else None

    def when_at(self, position: int, by_step: bool = False) -> "Moment | None":
        """The latest that has it stand there, perhaps in the midst of a chunk; or that led there `by_step`."""
        for moment in self.life():
            if moment.kind == "step" and moment.past is not None:
                if moment.past.position < position <= moment.position:
                    return moment
            elif moment.position == position and not by_step:
                return moment
        return None

    def __str__(self) -> str:
        if not self.lives:
            return {"never": "never made", "ended": f"ended ({self.key[0] if self.key else ''})"}[self.kind]
        return f"incarnation {self.incarnation}, position {self.position}, experience {self.experience}"


class Seen(NamedTuple):
    """How an operation is explained: what the session is after it, and which moment and position it tells of."""

    after: Moment
    moment: Moment
    position: int


def explained(one: Operation, now: Moment) -> Seen | None:
    """How its answer is right when the session stands so; None if it isn't."""
    if one.refusal is not None:
        return _refused(one, one.refusal, now)
    assert one.answer is not None
    answer, request = one.answer, one.request
    match one.kind:
        case "step" if answer.get("replayed"):
            return _replayed(request, answer, now)
        case "step":
            after = stepped(request, now)
            told = _stands(answer)
            right = after is not None and told == (after.incarnation, after.position, after.experience)
            return Seen(after, after, after.position) if right and after is not None else None
        case "reset":
            return _reset(request, answer, now)
        case "create":
            return _of(now.after("made", answer["session"]["incarnation"], 0, 0, "new")) if not now.lives else None
        case "made":
            if now.lives:
                return _of(now) if now.incarnation == answer["incarnation"] and "blob" in request else None
            return _of(made(one, now, answer["incarnation"], _stands(answer)[1:]))
        case "delete" if answer.get("deleted"):
            return _of(ended(now, "deleted")) if now.lives and _names(request, now) else None
        case "delete":
            return _of(now) if now.kind == "ended" else None
        case "get":
            session = answer["session"]
            right = now.lives and _stands(session) == (now.incarnation, now.position, now.experience)
            return _of(now) if right and session.get("durable_position", 0) <= now.position else None
        case "durable":
            right = now.lives and answer["incarnation"] == now.incarnation
            return _of(now) if right and answer["durable_position"] <= now.position else None
        case "replay":
            return _at(now, answer["position"], answer.get("experience", 0), by_step=True) if now.lives else None
        case "copied" | "dump" | "export" if now.lives and _names(request, now):
            position = request.get("position", now.position)
            told_position = position if one.kind == "export" else answer.get("position", 0)
            if one.kind == "export" and "position" in answer:
                told_position = answer["position"]
            return _at(now, position, answer.get("experience", 0)) if told_position == position else None
    return None


def _of(now: Moment) -> Seen:
    return Seen(now, now, now.position)


def _at(now: Moment, position: int, experience: int, by_step: bool = False) -> Seen | None:
    moment = now.when_at(position, by_step)
    right = moment is not None and moment.experience == experience
    return Seen(now, moment, position) if right and moment is not None else None


def _stands(told: dict[str, Any]) -> tuple[int, int, int]:
    return told.get("incarnation", 0), told.get("position", 0), told.get("experience", 0)


def _names(request: dict[str, Any], now: Moment) -> bool:
    return request.get("incarnation", now.incarnation) == now.incarnation


def _content(request: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(request.get("inputs", ())), request.get("reset_experience", False), request.get("writer_id", 0)


def stepped(request: dict[str, Any], now: Moment) -> Moment | None:
    """The session after a chunk is applied, if it may be."""
    fits = (
        now.lives
        and _names(request, now)
        and request.get("position", now.position) == now.position
        and request.get("experience", now.experience) == now.experience
    )
    if not fits:
        return None
    timesteps, resets, writer = _content(request)
    experience = now.experience + resets
    return now.after("step", now.incarnation, now.position + len(timesteps), experience, timesteps, resets, writer)


def reset(request: dict[str, Any], now: Moment) -> Moment | None:
    """The session after a reset is applied, if it may be."""
    if stepped({**request, "inputs": ()}, now) is None:
        return None
    key = request.get("scope", 0) == RESET_ALL, request.get("writer_id", 0)
    return now.after("reset", now.incarnation, now.position, now.experience + 1, *key)


def ended(now: Moment, why: str) -> Moment:
    return now.after("ended", now.incarnation, now.position, now.experience, why)


def made(one: Operation, now: Moment, incarnation: int, stands: tuple[int, int]) -> Moment:
    """The session after a fork or an import."""
    position = one.request.get("position", stands[0])
    origin = ("blob", one.request["blob"]) if "blob" in one.request else ("fork", one.call)
    experience = one.request.get("experience", stands[1]) if "blob" in one.request else stands[1]
    return now.after("made", incarnation, position, experience, *origin)


def _applied_before(request: dict[str, Any], now: Moment) -> Moment | None:
    """The very chunk, in the past of this life."""
    start = request.get("position")
    for moment in now.life():
        if moment.kind == "step" and moment.past is not None and moment.past.position == start:
            return moment if moment.key == _content(request) else None
        if start is None or moment.position < start:
            break
    return None


def _replayed(request: dict[str, Any], answer: dict[str, Any], now: Moment) -> Seen | None:
    before = _applied_before(request, now) if _names(request, now) else None
    if before is None or _stands(answer) != (now.incarnation, before.position, before.experience):
        return None
    return Seen(now, before, before.position)


def _ended_by(experience: int, now: Moment) -> int | None:
    """Who ended an experience, as far as this life goes back."""
    for moment in now.life():
        if moment.experience == experience + 1 and moment.past is not None and moment.past.experience == experience:
            return int(moment.key[-1]) if moment.kind in ("step", "reset") else None
    return None


def _reset(request: dict[str, Any], answer: dict[str, Any], now: Moment) -> Seen | None:
    told = _stands(answer["session"])
    if answer.get("changed"):
        after = reset(request, now)
        right = after is not None and told == (after.incarnation, after.position, after.experience)
        return _of(after) if right and after is not None else None
    ended_experience = request.get("experience", now.experience)
    if not now.lives or told != (now.incarnation, now.position, now.experience) or ended_experience >= now.experience:
        return None
    return _of(now) if _ended_by(ended_experience, now) in (None, request.get("writer_id", 0)) else None


def _refused(one: Operation, refusal: dict[str, Any], now: Moment) -> Seen | None:
    request, reason = one.request, refusal["reason"]
    position, experience = request.get("position"), request.get("experience")
    here = now.lives and (
        int(refusal.get("expected_position", now.position)), int(refusal.get("experience", now.experience))
    ) == (now.position, now.experience)  # fmt: skip
    # On a stream, what was sent behind a refused message is refused with it.
    behind = request.get("pipelined", False) or position is None
    right = False
    if reason == "SESSION_NOT_FOUND":
        right = now.kind == "never" if "why" not in refusal else now.kind == "ended" and now.key == (refusal["why"],)
    elif reason == "SESSION_EXPIRED":
        if now.lives:  # it has just ended, or is told first
            now, right = ended(now, refusal.get("why", "")), True
        else:
            right = now.kind == "ended" and now.key == (refusal.get("why", ""),)
    elif reason == "SESSION_EXISTS":
        right = now.lives
    elif reason == "SESSION_REPLACED":
        right = now.lives and not _names(request, now) and int(refusal.get("incarnation", 0)) == now.incarnation
    elif reason == "STEP_GAP":
        ahead = (position or 0) > now.position or (experience or 0) > now.experience
        right = here and (behind or (_names(request, now) and ahead))
    elif reason == "STEP_CONFLICT":
        passed = (position is not None and position < now.position) or (experience or 0) < now.experience
        mine = one.kind == "step" and position is not None and _applied_before(request, now) is not None
        if one.kind == "reset" and experience is not None and experience < now.experience:
            mine = _ended_by(experience, now) == request.get("writer_id", 0)
        right = here and _names(request, now) and (behind or (passed and not mine))
    elif reason == "REPLY_GONE":
        right = now.lives and position is not None and (position < now.position or behind)
    return _of(now) if right else None
