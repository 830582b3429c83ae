"""Numbers from outside: what can't be counted with is refused where it comes in, and costs nobody else anything."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode
from pydantic import ValidationError

from dnc_serve.handler.config import ServeConfig
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.api.blobs import altered, exported, imported
from tests.handler.api.native import ask_json
from tests.handler.door import TIMEOUT, Door, chunk, error_info, open_door, refused
from tests.handler.harness import random_inputs

LARGEST = 2**64 - 1
MOST = 2**62  # what a session may begin with


@pytest.fixture(scope="module", params=["async", "off"])
def door(
    request: pytest.FixtureRequest, artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    with open_door(artifact_folder, tmp_path_factory.mktemp("state"), durability=request.param) as door:
        door.create("source")
        door.step("source", random_inputs(0, 3))
        yield door


@pytest.mark.parametrize(
    "number", [str(MOST + 1), str(2**63 - 1), str(2**64), "9" * 60, "9" * 5000, "-1", "1_0", "٣", "1.5", " 1", ""]
)
@pytest.mark.parametrize("name", ["position", "experience"])
def test_a_blob_can_not_begin_where_no_store_could_go_on(door: Door, name: str, number: str) -> None:
    blob = altered(exported(door, "source"), **{name: number})
    with refused("BAD_BLOB", StatusCode.INVALID_ARGUMENT):
        imported(door, "beyond", blob)
    with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND):
        door.session("beyond")


def test_a_blob_may_begin_far_away_and_go_on(door: Door) -> None:
    far = imported(door, "far", altered(exported(door, "source"), position=str(MOST), experience=str(MOST)))
    assert (far.position, far.experience) == (MOST, MOST)
    assert door.step("far", random_inputs(1, 4), position=MOST, reset_experience=True).position == MOST + 4
    assert door.session("far").experience == MOST + 1
    listed = door.stub.ListSessions(pb.ListSessionsRequest(prefix="far"), timeout=TIMEOUT).sessions
    assert [one.position for one in listed] == [MOST + 4]
    fork = pb.ForkSessionRequest(session_id="far", fork_session_id="far-fork")
    assert door.stub.ForkSession(fork, timeout=TIMEOUT).session.position == MOST + 4


def odd_calls(door: Door) -> dict[str, Callable[[], object]]:
    inputs, stub, late = random_inputs(0, 1), door.stub, {"timeout": TIMEOUT}
    reset = pb.Reset(session_id="source", position=LARGEST)
    again = pb.Reset(session_id="source", experience=LARGEST)
    return {
        "position of a chunk": lambda: door.step("source", inputs, position=LARGEST),
        "experience of a chunk": lambda: door.step("source", inputs, experience=LARGEST),
        "incarnation of a chunk": lambda: door.step("source", inputs, incarnation=LARGEST),
        "position of a reset": lambda: stub.ResetSession(pb.ResetSessionRequest(reset=reset), **late),
        "experience of a reset": lambda: stub.ResetSession(pb.ResetSessionRequest(reset=again), **late),
        "position of a dump": lambda: door.dump("source", position=LARGEST),
        "position of a fork": lambda: stub.ForkSession(
            pb.ForkSessionRequest(session_id="source", fork_session_id="f", position=LARGEST), **late
        ),
        "incarnation of a delete": lambda: stub.DeleteSession(
            pb.DeleteSessionRequest(session_id="source", incarnation=LARGEST), **late
        ),
        "cells of a dump": lambda: door.dump("source", max_cells=0),
        "page": lambda: stub.ListSessions(pb.ListSessionsRequest(page_size=2**32 - 1), **late),
        "bytes of an import": lambda: stub.ImportSession(
            iter([pb.ImportSessionRequest(session_id="i", total_bytes=LARGEST)]), **late
        ),
        "shape": lambda: stub.Step(
            pb.StepRequest(chunk=pb.Chunk(session_id="source", inputs=pb.Array(shape=[2**32 - 1, 2**32 - 1]))), **late
        ),
    }  # fmt: skip


def test_each_number_of_a_message_has_its_refusal(door: Door) -> None:
    for what, call in odd_calls(door).items():
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() in (
            StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION, StatusCode.OUT_OF_RANGE,
        ), (what, caught.value)  # fmt: skip
    assert door.session("source").position == 3


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 1e-30, 1e30])
def test_a_watcher_names_a_rate_that_there_is(door: Door, rate: float) -> None:
    with refused("BAD_REQUEST", StatusCode.INVALID_ARGUMENT):
        next(door.stub.WatchMemory(
            pb.WatchMemoryRequest(session_id="source", max_frames_per_second=rate), timeout=TIMEOUT
        ))  # fmt: skip


@pytest.mark.parametrize("cells", [1, 2**32 - 1])
def test_frames_are_thinned_to_any_number_of_cells(door: Door, cells: int) -> None:
    watching = door.stub.WatchMemory(pb.WatchMemoryRequest(session_id="source", max_cells=cells), timeout=TIMEOUT)
    assert next(watching).position == 3
    watching.cancel()


@pytest.mark.parametrize(
    "call",
    [
        '{"step": {"session_id": "source", "inputs": [[1, 1, 1, 1, 1]], "position": %s}}',
        '{"step": {"session_id": "source", "inputs": [[1, 1, 1, 1, %s]], "position": 99}}',
        '{"reset_session": {"session_id": "source", "experience": %s}}',
        '{"dump_memory": {"session_id": "source", "max_cells": %s, "position": 99}}',
        '{"list_sessions": {"page_size": %s}}',
        '{"fork_session": {"session_id": "source", "fork_session_id": "f", "incarnation": %s}}',
    ],
)
@pytest.mark.parametrize("number", ["-1", "1e400", "NaN", str(2**64), "9" * 400, "9" * 5000, '"1e30"', "1.5", "true"])
def test_each_number_of_a_json_call_has_its_refusal(door: Door, call: str, number: str) -> None:
    answer = ask_json(door, call % number)
    assert answer["status"]["code"] in (3, 9), answer  # INVALID_ARGUMENT, FAILED_PRECONDITION
    assert door.session("source").position == 3


@pytest.mark.parametrize(
    "limit",
    [
        "max_sessions = 0", f"max_sessions = {10**30}", "max_state_bytes = -1", f"max_state_bytes = {'9' * 400}",
        "max_timesteps_per_second = nan", "max_timesteps_per_second = inf", "max_timesteps_per_second = 1e-300",
        "max_timesteps_per_second = 1e300", f"max_sessions = {'9' * 5000}",
    ],
)  # fmt: skip
def test_a_limit_of_a_token_is_one_that_there_can_be(artifact_folder: Path, tmp_path: Path, limit: str) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\n{limit}\n')
    with pytest.raises(ValueError, match=r"tokens\.toml"), open_door(artifact_folder, tmp_path, tokens=str(tokens)):
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_sessions", 10**30), ("host_bytes", 10**30), ("sync_interval_ms", float("inf")),
        ("idle_timeout_s", 1e300), ("max_age_s", 1e300), ("lease_s", 1e300), ("lease_s", 1e-9), ("grace_s", 1e300),
        ("history_hours", float("inf")), ("tombstone_days", 1e300), ("response_timeout_s", 10**12),
    ],
)  # fmt: skip
def test_a_setting_is_one_that_can_be_counted_with(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        ServeConfig(**{name: value})


def test_a_session_that_can_not_be_written_costs_the_others_of_its_commit_nothing(
    artifact_folder: Path, tmp_path: Path
) -> None:
    names = [f"s{number}" for number in range(6)]
    with open_door(artifact_folder, tmp_path, durability="sync") as door:
        for name in (*names, "damaged"):
            door.create(name)
        database = sqlite3.connect(tmp_path / "sessions.db")
        database.execute(
            "CREATE TRIGGER damaged BEFORE INSERT ON sessions WHEN new.id = 'damaged' "
            "BEGIN SELECT RAISE(ABORT, 'its page is damaged'); END"
        )
        database.commit()
        database.close()
        stop = threading.Event()
        refusals: list[grpc.RpcError] = []

        def delete_in_vain() -> None:
            while not stop.is_set():
                try:
                    door.stub.DeleteSession(pb.DeleteSessionRequest(session_id="damaged"), timeout=TIMEOUT)
                except grpc.RpcError as exc:
                    refusals.append(exc)

        thread = threading.Thread(target=delete_in_vain)
        thread.start()
        try:
            messages = [
                pb.StreamRequest(chunk=chunk(name, random_inputs(turn, 1), position=turn))
                for turn in range(40)
                for name in names
            ]
            answers = door.stream(messages)
        finally:
            stop.set()
            thread.join()
        assert refusals
        assert {error_info(answer.error.status).reason for answer in answers if answer.HasField("error")} == set()
        assert all(door.session(name).position == 40 for name in names)


def test_json_names_what_it_refuses(door: Door) -> None:
    answer = ask_json(door, json.dumps({"list_sessions": {"page_size": 1001}}))
    assert answer["status"]["details"][0]["reason"] == "BAD_REQUEST"
