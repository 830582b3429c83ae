"""What a server keeps its promise against: restarts, other models, full disks, damaged files, time."""

import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from grpc import StatusCode

from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.server import DncServer
from dnc_serve.handler.store.contract import Record
from dnc_serve.handler.store.records import decode_record, encode_record
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, open_door, refused
from tests.handler.harness import INPUT_SIZE, OUTPUT_SIZE, random_inputs
from tests.handler.scrape import scrape
from tests.waiting import wait_until


def forge_last_outputs(folder: Path, incarnation: int, difference: float) -> None:
    """Adds to the outputs of the last record of session s, the only one; its checksum fits again."""
    with closing(sqlite3.connect(folder / "sessions.db")) as database, database:
        [(rowid, ordinal, position, at, body)] = database.execute(
            "SELECT rowid, ordinal, position, at, body FROM records ORDER BY position DESC LIMIT 1"
        ).fetchall()
        was = decode_record(Record("s", incarnation, ordinal, position, 0, at, body))
        outputs = was.outputs.view("<f4") + np.float32(difference)
        forged = encode_record(
            "s", incarnation, ordinal, position, 0, at, was.fingerprint, was.inputs, outputs, was.reset, was.writer_id
        )
        database.execute("UPDATE records SET body = ? WHERE rowid = ?", (forged.body, rowid))


def reset_all(door: Door, session_id: str) -> pb.ResetResult:
    reset = pb.Reset(session_id=session_id, scope=pb.RESET_SCOPE_ALL)
    return door.stub.ResetSession(pb.ResetSessionRequest(reset=reset), timeout=TIMEOUT).result


@pytest.fixture(scope="module")
def other_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, with a state of another size."""
    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(8)
    export(DNC(INPUT_SIZE, 16, num_hidden_layers=1, nr_cells=9, cell_size=5, read_heads=1), folder)
    return folder


@pytest.mark.parametrize("durability", ["async", "sync"])
def test_a_drained_server_goes_on_where_it_was(artifact_folder: Path, tmp_path: Path, durability: str) -> None:
    with open_door(artifact_folder, tmp_path / "whole", durability="off") as door:
        door.create("s")
        whole = [door.step("s", random_inputs(seed, 4)).outputs for seed in range(6)]
    parts = []
    for run in range(3):
        with open_door(artifact_folder, tmp_path / "parts", durability=durability) as door:
            if run == 0:
                door.create("s")
            assert door.session("s").position == 8 * run
            parts += [door.step("s", random_inputs(seed, 4)).outputs for seed in (2 * run, 2 * run + 1)]
            assert scrape(door)["dnc_timesteps_recovered_total"] == 0  # the drain left a snapshot
    assert parts == whole


def test_a_drain_leaves_a_snapshot_of_every_session_however_many(artifact_folder: Path, tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(300)]
    with open_door(artifact_folder, tmp_path) as door:
        for name in names:
            door.create(name)
            door.step(name, random_inputs(0, 1))
    with open_door(artifact_folder, tmp_path) as door:
        for name in names:
            door.step(name, random_inputs(1, 1), position=1)
        assert scrape(door)["dnc_timesteps_recovered_total"] == 0


def test_durability_off_remembers_nothing_and_leaves_what_was_recorded(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        door.create("kept")
    with open_door(artifact_folder, tmp_path, durability="off") as door:
        with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND):
            door.session("kept")
        door.create("lost")
    with (
        open_door(artifact_folder, tmp_path, durability="off") as door,
        refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND),
    ):
        door.session("lost")
    with open_door(artifact_folder, tmp_path) as door:
        assert door.session("kept").position == 0


def test_a_session_of_another_model_is_never_continued(
    artifact_folder: Path, other_artifact: Path, tmp_path: Path
) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        for session_id in ("exported", "reset", "deleted"):
            door.create(session_id)
            door.step(session_id, random_inputs(0, 5))
        digest = door.session("reset").model_digest
    with open_door(other_artifact, tmp_path, code="torchscript") as door:
        for session_id in ("exported", "reset", "deleted"):
            with refused("MODEL_MISMATCH", StatusCode.FAILED_PRECONDITION) as info:
                door.step(session_id, random_inputs(1, 2), position=5)
            assert info["session_digest"] == digest != info["model_digest"]
        with refused("MODEL_MISMATCH", StatusCode.FAILED_PRECONDITION):
            door.dump("reset")
        parts = door.stub.ExportSession(pb.ExportSessionRequest(session_id="exported"), timeout=TIMEOUT)
        blob = b"".join(part.data for part in parts)
        with refused("MODEL_MISMATCH", StatusCode.FAILED_PRECONDITION) as info:
            message = pb.ImportSessionRequest(session_id="again", total_bytes=len(blob), data=blob)
            door.stub.ImportSession(iter([message]), timeout=TIMEOUT)
        result = reset_all(door, "reset")
        assert (result.changed, result.session.position) == (True, 5)
        assert door.step("reset", random_inputs(1, 2), position=5).position == 7
        door.stub.DeleteSession(pb.DeleteSessionRequest(session_id="deleted"), timeout=TIMEOUT)
    with open_door(other_artifact, tmp_path, code="torchscript") as door:
        assert door.step("reset", random_inputs(1, 2), position=7).position == 9
    with open_door(artifact_folder, tmp_path) as door:
        message = pb.ImportSessionRequest(session_id="again", total_bytes=len(blob), data=blob)
        door.stub.ImportSession(iter([message]), timeout=TIMEOUT)
        assert door.step("again", random_inputs(1, 2), position=5).outputs
        assert door.step("exported", random_inputs(1, 2), position=5).position == 7


@contextmanager
def full_disk(at_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("durability", ["async", "sync"])
def test_a_full_disk_stops_acknowledgements_and_loses_nothing(
    artifact_folder: Path, tmp_path: Path, durability: str
) -> None:
    with open_door(artifact_folder, tmp_path, durability=durability) as door:
        door.create("s")
        door.step("s", random_inputs(0, 4))
        largest = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        with full_disk(largest):
            position = 4
            with refused("STORE_UNAVAILABLE", StatusCode.UNAVAILABLE):
                for seed in range(1, 100):
                    position = door.step("s", random_inputs(seed, 4), position=position).position
            assert door.session("s").position == position
            assert scrape(door)["dnc_store_up"] == 0
            with refused("STORE_UNAVAILABLE", StatusCode.UNAVAILABLE):
                door.create("t")

        def heals() -> bool:
            try:
                return door.step("s", random_inputs(200, 4), position=position).position == position + 4
            except grpc.RpcError:
                return False

        wait_until(heals, "there is room again")
        assert scrape(door)["dnc_store_up"] == 1
        door.create("t")
    with open_door(artifact_folder, tmp_path, durability=durability) as door:
        assert door.session("s").position == position + 4
        dumped = door.dump("s")
        replayed = door.dump("s", position=position + 3)
        assert dumped["memory"].shape == replayed["memory"].shape


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), TypeError("a mistake of ours")], ids=repr)
def test_a_sync_that_failed_is_made_again_by_itself(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    with open_door(artifact_folder, tmp_path, durability="async") as door:
        door.create("s")
        sync, failures = os.fdatasync, []

        def fail_once(descriptor: int) -> None:
            if not failures:
                failures.append(descriptor)
                raise failure
            sync(descriptor)

        door.step("s", random_inputs(0, 4))
        wait_until(lambda: door.session("s").durable_position == 4, "all is synced")
        monkeypatch.setattr(os, "fdatasync", fail_once)
        door.step("s", random_inputs(1, 4))
        wait_until(lambda: failures, "a sync fails")
        # Nothing more is written.
        wait_until(lambda: door.session("s").durable_position == 8, "another one comes")


def test_a_damaged_snapshot_falls_back_to_the_one_before(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, snapshot_every_timesteps=8) as door:
        door.create("s")
        for seed in range(8):
            door.step("s", random_inputs(seed, 4))
        before = door.dump("s")
    database = sqlite3.connect(tmp_path / "sessions.db")
    rows = database.execute("SELECT rowid, state FROM states ORDER BY rowid").fetchall()
    assert len(rows) >= 3
    for rowid, state in rows[-2:]:
        flipped = bytearray(state)
        flipped[len(flipped) // 2] ^= 4
        database.execute("UPDATE states SET state = ? WHERE rowid = ?", (bytes(flipped), rowid))
    database.commit()
    database.close()
    with open_door(artifact_folder, tmp_path) as door:
        after = door.dump("s")
        assert all(after[name].tobytes() == before[name].tobytes() for name in before)
        metrics = scrape(door)
        assert metrics["dnc_snapshot_fallbacks_total"] == 2
        assert metrics["dnc_timesteps_recovered_total"] > 0


def test_a_damaged_record_is_refused_never_wrong(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        door.create("s")
        door.step("s", random_inputs(0, 4))
        door.step("s", random_inputs(1, 4))
    database = sqlite3.connect(tmp_path / "sessions.db")
    database.execute("DELETE FROM snapshots")
    [(rowid, body)] = database.execute("SELECT rowid, body FROM records ORDER BY rowid DESC LIMIT 1").fetchall()
    flipped = bytearray(body)
    flipped[-3] ^= 1
    database.execute("UPDATE records SET body = ? WHERE rowid = ?", (bytes(flipped), rowid))
    database.commit()
    database.close()
    with open_door(artifact_folder, tmp_path) as door:
        for _ in range(2):
            with refused("CORRUPT_STATE", StatusCode.DATA_LOSS):
                door.step("s", random_inputs(2, 4), position=8)
        assert reset_all(door, "s").changed
        assert door.step("s", random_inputs(2, 4), position=8).position == 12


@pytest.mark.parametrize("difference", [0.0, 0.001])
def test_a_replay_on_another_processor_must_come_as_close_as_rounding_does(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("platform.machine", lambda: "of-another-kind")
        with open_door(artifact_folder, tmp_path) as door:
            incarnation = door.create("s").incarnation
            door.step("s", random_inputs(0, 4))
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as database, database:
        database.execute("DELETE FROM snapshots")
    forge_last_outputs(tmp_path, incarnation, difference)
    with open_door(artifact_folder, tmp_path) as door:
        if difference:
            with refused("CORRUPT_STATE", StatusCode.DATA_LOSS):
                door.step("s", random_inputs(1, 4))
        else:
            door.step("s", random_inputs(1, 4))
            assert door.session("s").replayed_elsewhere


def test_snapshots_are_taken_by_bytes_too(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, snapshot_every_timesteps=10**6, snapshot_every_bytes=4096) as door:
        door.create("s")
        for seed in range(10):  # each some 750 bytes
            door.step("s", random_inputs(seed, 20))
        assert scrape(door)["dnc_snapshot_seconds_count"] == 10 * 20 * 4 * (INPUT_SIZE + OUTPUT_SIZE) // 4096


def test_an_idle_session_expires_and_says_so(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, idle_timeout_s=1.0) as door:
        door.create("s")
        door.step("s", random_inputs(0, 2))
        wait_until(lambda: scrape(door)["dnc_session_evictions_total", "idle"] == 1, "the session ends")
        with refused("SESSION_EXPIRED", StatusCode.NOT_FOUND) as info:
            door.step("s", random_inputs(0, 2))
        assert info["why"] == "idle"


def test_the_limit_of_sessions(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, max_sessions=2) as door:
        door.create("a")
        door.create("b")
        with refused("SESSION_LIMIT", StatusCode.RESOURCE_EXHAUSTED):
            door.create("c")
        door.stub.DeleteSession(pb.DeleteSessionRequest(session_id="a"), timeout=TIMEOUT)
        door.create("c")


def test_a_state_too_large_for_the_budget(artifact_folder: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ServeError, match=r"takes \d+ bytes, more than the 256") as caught,
        open_door(artifact_folder, tmp_path, host_bytes=256),
    ):
        pass
    assert caught.value.reason == "STATE_TOO_LARGE"


def test_two_servers_can_not_share_a_state_folder_or_a_port(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        with pytest.raises(Exception, match=str(tmp_path)), open_door(artifact_folder, tmp_path):
            pass
        config = door.server._config.model_copy(
            update={"state_dir": tmp_path / "two", "port": int(door.addresses.grpc.rpartition(":")[2])}
        )
        second = DncServer(config, [artifact_folder], "cpu")
        with pytest.raises(OSError, match="in use"):
            second.start()
        door.create("still")


def test_counts_are_exactly_what_was_done(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        door.create("s")
        for seed in range(5):
            door.step("s", random_inputs(seed, 3), position=3 * seed)
        door.step("s", random_inputs(4, 3), position=12)  # again
        door.stub.ResetSession(pb.ResetSessionRequest(reset=pb.Reset(session_id="s")), timeout=TIMEOUT)
        reset_all(door, "s")
        for _ in range(2):
            with refused("STEP_GAP", StatusCode.FAILED_PRECONDITION):
                door.step("s", random_inputs(0, 1), position=99)
        metrics, state_bytes = scrape(door), door.session("s").state_bytes
    assert metrics["dnc_timesteps_total"] == 15
    assert metrics["dnc_step_duration_seconds_count", "unary"] == 6
    assert metrics["dnc_queue_wait_seconds_count"] == 5
    assert metrics["dnc_steps_replayed_total"] == 1
    assert metrics["dnc_resets_total", "experience"] == 1
    assert metrics["dnc_resets_total", "all"] == 1
    assert metrics["dnc_errors_total", "STEP_GAP"] == 2
    assert metrics["dnc_sessions", "slot"] == 1
    assert metrics["dnc_session_state_bytes", "slot"] == state_bytes
