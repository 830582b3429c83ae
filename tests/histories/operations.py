"""A recorded history as operations: what each call asked of one session, when, and what it was answered."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEVER = float("inf")
# What these say of a session's present must be right. All other refusals change nothing and say nothing.
JUDGED = {"SESSION_NOT_FOUND", "SESSION_EXPIRED", "SESSION_EXISTS", "SESSION_REPLACED", "STEP_GAP", "STEP_CONFLICT",
          "REPLY_GONE"}  # fmt: skip
# Of a call that was refused for any of these, or for no reason that the server gave, nobody knows if it was applied.
UNKNOWN = {"", "INTERNAL", "STORE_UNAVAILABLE"}
WRITES = {"step", "reset", "create", "made", "delete"}
UNARY = {
    "CreateSession": "create", "GetSession": "get", "DeleteSession": "delete", "Step": "step", "ResetSession": "reset",
    "DumpMemory": "dump", "ReplaySession": "replay", "ExportSession": "export", "ImportSession": "import",
    "ForkSession": "fork", "ListSessions": "list", "loss": "loss",
}  # fmt: skip
ASIDE = {"model_digest", "tier", "state_bytes", "last_used", "fingerprint", "earliest_position"}
INSIDE = {"Step": ("chunk", "result"), "ResetSession": ("reset", "result"), "DumpMemory": ("dump", "dump")}
ON_STREAM = {"chunk": "step", "reset": "reset", "dump": "dump"}


@dataclass(frozen=True, slots=True)
class Operation:
    """A call, or a message on a stream, as far as it concerns one session. A fork is two: `copied` of its source, and
    `made` of what it makes."""

    kind: str
    session: str  # "" for what befalls all
    sent: float  # seconds
    request: dict[str, Any]
    answered: float = NEVER
    answer: dict[str, Any] | None = None
    refusal: dict[str, Any] | None = None
    call: int = 0  # the same for both halves of a fork

    @property
    def is_settled(self) -> bool:
        """Whether an order must explain it."""
        return self.answer is not None or self.refusal is not None

    def __str__(self) -> str:
        if self.refusal is not None:
            what = f"refused: {json.dumps(self.refusal)}"
        else:
            what = "no answer" if self.answer is None else json.dumps(_brief(self.answer))
        until = "" if self.answered == NEVER else f"{self.answered:.6f}"
        return f"{self.sent:.6f}–{until} {self.kind} {self.session} {json.dumps(self.request)} → {what}"


def _brief(told: dict[str, Any]) -> dict[str, Any]:
    """Without what the checker doesn't look at."""
    return {key: _brief(value) if isinstance(value, dict) else value for key, value in told.items() if key not in ASIDE}


class _Open:
    """One of which the answer may come yet."""

    def __init__(self, kind: str, at: float, request: dict[str, Any]) -> None:
        self.kind, self.sent, self.request = kind, at, request
        self.answers: list[tuple[float, dict[str, Any]]] = []
        self.refusal: tuple[float, dict[str, Any]] | None = None


def read(path: Path) -> list[Operation]:
    """All of a file, in the order in which they were sent. A last line that was cut is left out."""
    opened: list[_Open] = []
    calls: dict[str, list[_Open]] = defaultdict(list)
    for line in path.read_text().split("\n")[:-1]:
        event = json.loads(line)
        call, at, method = calls[event["call"]], event["at"], event["method"]
        if "sent" in event and (method in UNARY or method == "Stream"):
            call.append(_opened(method, at, event["sent"]))
            opened.append(call[-1])
        elif "blob" in event:
            call[-1].request |= event["blob"]
        elif "got" in event and method == "Stream":
            _answer_on_stream(call, at, event["got"])
        elif "got" in event and call:
            answer = event["got"].get(INSIDE[method][1], {}) if method in INSIDE else event["got"]
            call[-1].answers.append((at, answer))
        elif "end" in event and method != "Stream" and call and not call[-1].answers:
            call[-1].refusal = at, event["end"]
    found = (one for call, each in enumerate(opened) for one in _settled(call, each))
    return sorted(found, key=lambda one: one.sent)


def _opened(method: str, at: float, sent: dict[str, Any]) -> _Open:
    if method == "Stream":
        ((kind, request),) = sent.items()
        return _Open(ON_STREAM[kind], at, request)
    return _Open(UNARY[method], at, sent.get(INSIDE[method][0], {}) if method in INSIDE else sent)


def _answer_on_stream(call: list[_Open], at: float, got: dict[str, Any]) -> None:
    ((kind, answer),) = got.items()
    if kind == "go_away":
        return
    name = answer["session"]["session_id"] if kind == "reset" else answer.get("session_id", "")
    fits = [one for one in call if one.request.get("session_id", "") == name and
            one.request.get("request_id", 0) == answer.get("request_id", 0) and
            (kind == "error" or one.kind == ON_STREAM[kind])]  # fmt: skip
    waiting = [one for one in fits if not one.answers and one.refusal is None]
    if kind == "error":
        if waiting:
            waiting[0].refusal = at, answer.get("status", {"reason": ""})
    elif fits:  # what is answered twice is held against the message that was answered before
        (waiting or fits[-1:])[0].answers.append((at, answer))


def _settled(call: int, one: _Open) -> Iterator[Operation]:
    kind, request, name = one.kind, one.request, one.request.get("session_id", "")
    if not one.answers:
        at, refusal = one.refusal or (NEVER, {"reason": ""})
        known = refusal["reason"] in JUDGED
        if kind == "fork":
            of_source = refusal["reason"] not in ("SESSION_EXISTS", *UNKNOWN)
            kind, name = ("copied", name) if of_source else ("made", request["fork_session_id"])
        kind = "made" if kind == "import" else kind
        if known:
            yield Operation(kind, name, one.sent, request, at, None, refusal, call)
        elif kind == "loss" or (kind in WRITES and refusal["reason"] in UNKNOWN):
            yield Operation(kind, name, one.sent, request, call=call)
    for number, (at, answer) in enumerate(one.answers):
        for each in _answered(kind, name, one, at, answer, call):
            yield each if not number or kind == "replay" else _again(each)


def _again(one: Operation) -> Operation:
    """A second answer to the same message tells of the same application."""
    answer = {**(one.answer or {}), "replayed": True}
    return Operation(one.kind, one.session, one.sent, one.request, one.answered, answer, None, one.call)


def _answered(
    kind: str, name: str, one: _Open, at: float, answer: dict[str, Any], call: int
) -> Iterator[Operation]:  # fmt: skip
    request, session = one.request, answer.get("session", {})

    def operation(kind: str, name: str, answer: dict[str, Any], **more: Any) -> Operation:
        return Operation(kind, name, one.sent, {**request, **more}, at, answer, call=call)

    if kind == "list":
        for each in answer.get("sessions", ()):
            yield Operation("get", each["session_id"], one.sent, {}, at, {"session": each}, call=call)
    elif kind == "create":
        if answer.get("created"):
            yield operation("create", name, answer)
        yield operation("get", name, answer)  # what is told was looked up a moment after
    elif kind in ("fork", "import"):
        made = request["fork_session_id"] if kind == "fork" else name
        if kind == "fork" and answer.get("created"):
            yield operation("copied", name, session)
        if kind == "import" or answer.get("created"):
            yield operation("made", made, session)
        yield operation("get", made, answer)
    else:
        yield operation(kind, name, answer)
        # A reply may leave when more is durable than it tells of.
        if kind == "step" and answer.get("durable_position", 0) > answer.get("position", 0):
            yield operation("durable", name, answer)


def by_session(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Those of each session, with what befell all of them; sessions in the order in which they were first spoken of."""
    operations = list(operations)
    result: dict[str, list[Operation]] = {one.session: [] for one in operations if one.session}
    for one in operations:
        for name in [one.session] if one.session else result:
            result[name].append(one)
    return result
