"""The JSON interface behind the page."""

import json
import math
import struct
from typing import Any

import numpy as np
import pytest

from dnc_serve.client.client import Client
from dnc_serve.client.watch import site
from dnc_serve.model.tasks.copy import encode
from tests.client.watch.asking import request


@pytest.fixture
def ask(address: str, secret: dict[str, str]) -> Any:
    def ask(path: str, body: Any = None) -> tuple[int, Any]:
        status, _, answer = request(address, path, secret, body)
        return status, json.loads(answer)

    return ask


def test_a_session_is_made_stepped_forked_and_listed(ask: Any, client: Client) -> None:
    inputs = encode([[0, 1] * 4] * 3)
    assert ask("api/sessions", {"id": "made"})[1]["position"] == 0
    status, stepped = ask("api/sessions/made/steps", {"inputs": inputs.tolist()})
    assert (status, stepped["position"]) == (200, 4)
    with client.session("same") as session:
        assert session.step(inputs).tolist() == stepped["outputs"]
    assert ask("api/sessions/made/fork", {"id": "made-too", "position": 2})[1]["position"] == 2
    listed = ask("api/sessions?prefix=made")[1]
    assert [session["id"] for session in listed["sessions"]] == ["made", "made-too"]
    assert listed["more"] is False


def test_a_step_can_forget_first(ask: Any) -> None:
    ask("api/sessions", {"id": "forgets"})
    row = encode([[1] * 8])[:1].tolist()
    ask("api/sessions/forgets/steps", {"inputs": row})
    ask("api/sessions/forgets/steps", {"inputs": row, "reset_experience": True})
    assert ask("api/sessions/forgets")[1]["experience"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("api/sessions/nobody", None, 404, "SESSION_NOT_FOUND"),
        ("api/sessions/nobody/memory", None, 404, "SESSION_NOT_FOUND"),
        ("api/sessions/nobody/steps", {"inputs": [[0] * 10]}, 404, "SESSION_NOT_FOUND"),
        ("api/sessions", {"id": "not an id"}, 400, "BAD_ID"),
        ("api/sessions/wrong/steps", {"inputs": [[0]]}, 400, "BAD_SHAPE"),
        ("api/sessions/wrong/steps", {}, 400, "BAD_SHAPE"),
        ("api/sessions/wrong/steps", [], 400, "BAD_REQUEST"),
        ("api/sessions/wrong/reset", {"scope": "some"}, 400, "BAD_REQUEST"),
        ("api/sessions/wrong/memory?position=x", None, 400, "BAD_REQUEST"),
        ("api/sessions/wrong/memory?position=-1", None, 400, "BAD_REQUEST"),
        ("api/sessions/wrong/memory?position=7", None, 409, "STEP_GAP"),
        ("api/sessions/wrong/past?after=0&until=7&every=1", None, 409, "STEP_GAP"),
        ("api/sessions/wrong/past?after=0&until=x&every=1", None, 400, "BAD_REQUEST"),
        ("api/inputs?name=a.csv", {"no": "csv"}, 400, "BAD_REQUEST"),
    ],
)
def test_refusals_keep_their_reason(ask: Any, path: str, body: Any, status: int, reason: str) -> None:
    ask("api/sessions", {"id": "wrong"})
    answered, answer = ask(path, body)
    assert (answered, answer["reason"]) == (status, reason), answer


def test_the_past_comes_with_gates(address: str, secret: dict[str, str], client: Client) -> None:
    with client.session("looked-at") as session:
        session.step(encode([[1, 0] * 4] * 4))
        dump = session.dump(["memory"], position=2)
        asked = session.dump(["interface"], position=2)
    _, _, message = request(address, "api/sessions/looked-at/memory?position=2", secret)
    head_bytes = int.from_bytes(message[:4], "little")
    head = json.loads(message[8 : 8 + head_bytes])
    assert (head["position"], head["experience"]) == (2, 0)
    arrays, offset = {}, 8 + head_bytes
    for array in head["arrays"]:
        assert array["shape"] == array["full_shape"]
        end = offset + 4 * math.prod(array["shape"])
        arrays[array["name"]] = message[offset:end]
        offset = end
    assert arrays["memory"] == dump["memory"].tobytes()
    assert arrays["read_modes"] == asked["read_modes"].tobytes()


def test_nobody_makes_a_session_by_looking(ask: Any, client: Client) -> None:
    ask("api/sessions/unmade/memory")
    assert "unmade" not in [info.id for info in client.sessions()]


def test_a_message_holds_head_and_arrays() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([[7]])}
    message = site.encode({"position": 5}, arrays, {"a": (20, 30)})
    head_bytes, body_bytes = struct.unpack_from("<II", message)
    assert head_bytes % 4 == 0
    assert len(message) == 8 + head_bytes + body_bytes
    head = json.loads(message[8 : 8 + head_bytes])
    assert head == {
        "position": 5,
        "arrays": [
            {"name": "a", "shape": [2, 3], "full_shape": [20, 30]},
            {"name": "b", "shape": [1, 1], "full_shape": [1, 1]},
        ],
    }
    body = np.frombuffer(message[8 + head_bytes :], "<f4")
    assert body.tolist() == [0, 1, 2, 3, 4, 5, 7]
