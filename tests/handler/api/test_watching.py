"""Watching: what a frame shows, how often frames come, and what they may cost."""

import asyncio
import json
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from dnc_serve.handler.api import watch as watching
from dnc_serve.handler.api.watch import MAX_FRAME_CELLS
from dnc_serve.handler.arrays import Float32
from dnc_serve.model.artifact import load_artifact
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from dnc_serve.model.state import DNCState
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.api.test_looks import strongest
from tests.handler.door import TIMEOUT, Door, open_door, refused
from tests.handler.harness import INPUT_SIZE, random_inputs
from tests.waiting import wait_until

SIX = ("memory", "link_matrix", "precedence", "read_weights", "write_weights", "usage_vector")


@pytest.fixture(scope="module")
def door(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(artifact_folder, tmp_path_factory.mktemp("state"), durability="off") as door:
        yield door


def watch(door: Door, session_id: str, timeout: float = TIMEOUT, **options: Any) -> Any:
    return door.stub.WatchMemory(pb.WatchMemoryRequest(session_id=session_id, **options), timeout=timeout)


def values(frame: pb.WatchMemoryResponse, name: str) -> Float32:
    array = frame.arrays[name].array
    return np.frombuffer(array.data, "<f4").reshape(tuple(array.shape))


def test_a_frame_holds_what_a_dump_holds(door: Door) -> None:
    door.create("same")
    door.step("same", random_inputs(1, 6))
    frame = next(watch(door, "same"))
    dump = door.dump("same")
    assert frame.position == 6
    assert set(frame.arrays) == set(dump)
    for name, array in dump.items():
        shown = values(frame, name)
        assert tuple(frame.arrays[name].full_shape) == shown.shape
        assert shown.tobytes() == array.tobytes()
    assert values(frame, "memory").shape == (1, 12, 6)
    assert values(frame, "link_matrix").shape == (1, 1, 12, 12)


def test_the_interface_is_that_of_the_last_timestep(door: Door, artifact_folder: Path) -> None:
    door.create("interface")
    assert not next(watch(door, "interface", names=["interface"])).arrays  # no timestep, no interface
    inputs = random_inputs(2, 5)
    door.step("interface", inputs)
    frame = next(watch(door, "interface", names=["interface", "usage_vector"]))

    artifact = load_artifact(artifact_folder)
    _, packed = artifact.tick(torch.from_numpy(inputs)[:, None], torch.zeros(1, artifact.layout.size))
    expected = artifact.derive("interface", packed[0].numpy())
    assert set(frame.arrays) == {*expected, "usage_vector"}
    for name, tensor in expected.items():
        np.testing.assert_allclose(values(frame, name), tensor, atol=1e-5)
    assert values(frame, "read_modes").shape == (2, 2, 3)
    np.testing.assert_allclose(values(frame, "read_modes").sum(-1), 1, atol=1e-5)


class Pace:
    """The pauses that the server makes between frames: it asks for them, and the test ends them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, frame_takes_s: float = 0.0) -> None:
        self.pauses: list[float] = []
        self.over = threading.Semaphore(0)
        spent = count(step=frame_takes_s)
        clock = SimpleNamespace(monotonic=lambda: 0.0, thread_time=lambda: next(spent))
        monkeypatch.setattr(watching, "time", clock)
        monkeypatch.setattr(watching, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": self._sleep}))

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        while not self.over.acquire(blocking=False):
            await asyncio.sleep(0.001)


def test_a_slow_watcher_skips_and_ends_with_the_present(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(monkeypatch)
    door.create("slow")
    frames = watch(door, "slow", names=["memory"])
    assert next(frames).position == 0
    for timestep in range(40):
        door.step("slow", random_inputs(timestep, 1))
    pace.over.release()
    present = next(frames)
    assert (present.position, present.skipped_frames) == (40, 39)
    assert values(present, "memory").tobytes() == door.dump("slow")["memory"].tobytes()
    pace.over.release()
    frames.cancel()


@pytest.mark.parametrize(
    ("frame_takes_s", "pause_s"), [(0.001, 1 / 20), (0.02, 0.2)], ids=["as asked for", "a tenth of a processor"]
)
def test_frames_come_as_often_as_asked_for_and_less_often_if_they_cost_more(
    door: Door, monkeypatch: pytest.MonkeyPatch, frame_takes_s: float, pause_s: float
) -> None:
    pace = Pace(monkeypatch, frame_takes_s)
    session_id = f"pace-{frame_takes_s}"
    door.create(session_id)
    frames = watch(door, session_id, names=["usage_vector"], max_frames_per_second=20)
    for position in range(3):
        assert next(frames).position == position
        door.step(session_id, random_inputs(position, 1))
        pace.over.release()
    next(frames)
    frames.cancel()
    assert pace.pauses[:3] == pytest.approx([pause_s] * 3)
    pace.over.release()


def test_many_watchers_see_the_same_and_leave_nothing_behind(door: Door) -> None:
    door.create("crowd")
    streams = [watch(door, "crowd", names=["memory"]) for _ in range(10)]
    assert {next(frames).position for frames in streams} == {0}
    door.step("crowd", random_inputs(3, 4))
    shown = [next(frames) for frames in streams]
    assert {frame.position for frame in shown} == {4}
    assert len({values(frame, "memory").tobytes() for frame in shown}) == 1
    assert len({frame.at.ToNanoseconds() for frame in shown}) == 1, "one look, made and encoded once"
    for frames in streams:
        frames.cancel()
    wait_until(lambda: not door.server._service._feeds.sessions, "nobody watches any more")
    door.step("crowd", random_inputs(4, 1))


def test_a_reset_is_seen(door: Door) -> None:
    door.create("reset")
    door.step("reset", random_inputs(5, 4))
    frames = watch(door, "reset", names=["memory", "link_matrix"])
    assert values(next(frames), "memory").any()
    door.stub.ResetSession(pb.ResetSessionRequest(reset=pb.Reset(session_id="reset")), timeout=TIMEOUT)
    after = next(frames)
    assert (after.position, after.experience) == (4, 1)
    assert not values(after, "memory").any()
    assert not values(after, "link_matrix").any()


def test_the_end_of_a_session_ends_its_watchers(door: Door) -> None:
    door.create("ends")
    frames = watch(door, "ends", names=["usage_vector"])
    next(frames)
    door.stub.DeleteSession(pb.DeleteSessionRequest(session_id="ends"), timeout=TIMEOUT)
    with refused("SESSION_NOT_FOUND", grpc.StatusCode.NOT_FOUND):
        next(frames)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"names": ["memories"]}, "memories"),
        ({"max_frames_per_second": -1}, "-1"),
        ({"max_frames_per_second": float("nan")}, "nan"),
        ({"max_frames_per_second": 1000}, "1000"),
    ],
)
def test_what_is_wrong_is_refused(door: Door, options: dict[str, Any], named: str) -> None:
    door.stub.CreateSession(pb.CreateSessionRequest(session_id="wrong", allow_existing=True), timeout=TIMEOUT)
    with refused("BAD_REQUEST", grpc.StatusCode.INVALID_ARGUMENT) as metadata:
        next(watch(door, "wrong", **options))
    assert named in json.dumps(metadata)


def test_a_session_that_is_not_there_is_refused(door: Door) -> None:
    with refused("SESSION_NOT_FOUND", grpc.StatusCode.NOT_FOUND):
        next(watch(door, "nobody"))


def test_a_large_state_is_thinned_to_pass_a_message(tmp_path: Path) -> None:
    dnc = DNC(INPUT_SIZE, 8, nr_cells=392, cell_size=16, read_heads=2, num_hidden_layers=1, output_size=4)
    export(dnc, tmp_path / "artifact")
    with open_door(tmp_path / "artifact", tmp_path / "state", durability="off", slots=8, code="torchscript") as door:
        door.create("large")
        door.step("large", random_inputs(6, 3))
        frame = next(watch(door, "large", names=[*SIX, "interface"], max_cells=1 << 31))
        assert frame.ByteSize() < 4 << 20
        assert tuple(frame.arrays["link_matrix"].full_shape) == (1, 1, 392, 392)
        small = next(watch(door, "large", names=["link_matrix", "memory"], max_cells=4096))
        links = door.dump("large", names=["link_matrix"])["link_matrix"].reshape(392, 392)
        shown = values(small, "link_matrix")[0, 0]
        assert shown.size <= 4096
        width = -(-392 // shown.shape[0])
        assert shown[0, 0] == strongest(links[:width, :width])
        assert shown[-1, -1] == strongest(links[(len(shown) - 1) * width :, (len(shown) - 1) * width :])
        assert values(small, "memory").shape[2] == 16  # rows are thinned first: there are more of them


def test_a_frame_of_everything_fits_a_message() -> None:
    names = len(DNCState._fields) + len(SIX) + len(["interface"])
    assert 4 * names * (MAX_FRAME_CELLS // names) < (4 << 20) - (32 << 10)
