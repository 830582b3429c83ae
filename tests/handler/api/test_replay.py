"""Past timesteps again: the same inputs, outputs and states as views of each position have them."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from dnc_serve.client.arrays import from_wire
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, open_door, outputs_of, refused
from tests.handler.engine.test_durability import forge_last_outputs
from tests.handler.harness import INPUT_SIZE
from tests.handler.scrape import scrape

TIMESTEPS = 40


def inputs_of(timesteps: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((timesteps, INPUT_SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def door(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    state = tmp_path_factory.mktemp("state")
    with open_door(artifact_folder, state, snapshot_every_timesteps=8) as door:
        door.create("s")
        yield door


@pytest.fixture(scope="module")
def answered(door: Door) -> np.ndarray:
    """Chunks of all lengths, one behind a reset of its own, and a reset between chunks."""
    outputs, inputs = [], inputs_of(TIMESTEPS)
    for start, end in ((0, 1), (1, 12), (12, 13), (13, 29), (29, TIMESTEPS)):
        if start == 29:
            door.stub.ResetSession(pb.ResetSessionRequest(reset=pb.Reset(session_id="s")), timeout=TIMEOUT)
        outputs.append(outputs_of(door.step("s", inputs[start:end], reset_experience=start == 13)))
    return np.concatenate(outputs)


def replay(door: Door, after: int, **options: object) -> list[pb.ReplaySessionResponse]:
    request = pb.ReplaySessionRequest(session_id="s", after=after, **options)  # type: ignore[arg-type]
    return list(door.stub.ReplaySession(request, timeout=TIMEOUT))


@pytest.mark.parametrize(("after", "until"), [(0, TIMESTEPS), (5, 31), (28, 30), (TIMESTEPS, TIMESTEPS)])
def test_a_replay_is_what_the_positions_are(door: Door, answered: np.ndarray, after: int, until: int) -> None:
    names = ["memory", "read_weights", "controller_hidden", "interface"]
    past = replay(door, after, until=until, names=names)
    assert [timestep.position for timestep in past] == list(range(after + 1, until + 1))
    for timestep in past:
        position = timestep.position
        assert from_wire(timestep.inputs).tobytes() == inputs_of(TIMESTEPS)[position - 1].tobytes()
        assert from_wire(timestep.outputs).tobytes() == answered[position - 1].tobytes()
        assert timestep.experience == (position > 13) + (position > 29)
        if position != 29:  # where the session last stood after a reset
            dump = door.dump("s", names=names, position=position)
            assert set(timestep.arrays) == set(dump)
            for name, watched in timestep.arrays.items():
                assert from_wire(watched.array).tobytes() == dump[name].tobytes(), (name, position)


def test_of_many_timesteps_some_are_shown(door: Door, answered: np.ndarray) -> None:
    whole = {timestep.position: timestep for timestep in replay(door, 0, names=["memory"])}
    for every, positions in ((7, [7, 14, 21, 28, 35, 40]), (100, [40])):
        assert replay(door, 3, names=["memory"], every=every) == [whole[position] for position in positions]
    thinned = replay(door, 39, names=["memory"], max_cells=6)[0].arrays["memory"]
    assert list(thinned.full_shape) == [1, 12, 6]
    assert len(from_wire(thinned.array).ravel()) <= 6


def test_what_can_not_be_replayed_is_refused(door: Door, answered: np.ndarray) -> None:
    with refused("STEP_GAP", grpc.StatusCode.FAILED_PRECONDITION):
        replay(door, 0, until=TIMESTEPS + 1)
    with refused("BAD_REQUEST", grpc.StatusCode.INVALID_ARGUMENT):
        replay(door, 5, until=4)
    with refused("BAD_REQUEST", grpc.StatusCode.INVALID_ARGUMENT):
        replay(door, 0, names=["nothing"])


def replayed_after_forgery(artifact: Path, folder: Path, difference: float) -> tuple[int, float]:
    """Messages of a replay of a record that another number was added to, and replays by other code until then."""
    with open_door(artifact, folder) as door:
        incarnation = door.create("s").incarnation
        door.step("s", inputs_of(4))
    forge_last_outputs(folder, incarnation, difference)
    with open_door(artifact, folder) as door:
        try:
            return len(replay(door, 0)), scrape(door)["dnc_replayed_elsewhere_total"]
        finally:  # its state came from a snapshot
            assert door.step("s", inputs_of(2), position=4).position == 6


def test_other_outputs_than_were_answered_are_told(artifact_folder: Path, tmp_path: Path) -> None:
    assert replayed_after_forgery(artifact_folder, tmp_path / "equal", 0.0) == (4, 0)
    with refused("CORRUPT_STATE", grpc.StatusCode.DATA_LOSS):
        replayed_after_forgery(artifact_folder, tmp_path / "other", 1e-6)


def test_other_code_comes_close_and_is_counted(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("platform.machine", lambda: "of-another-kind")
        with open_door(artifact_folder, tmp_path) as door:
            incarnation = door.create("s").incarnation
            door.step("s", inputs_of(4))
    for added, refuses in ((1e-6, False), (1e-3, True)):
        forge_last_outputs(tmp_path, incarnation, added)
        with open_door(artifact_folder, tmp_path) as door:
            if refuses:
                with refused("CORRUPT_STATE", grpc.StatusCode.DATA_LOSS):
                    replay(door, 0)
            else:
                assert len(replay(door, 0)) == 4
            assert scrape(door)["dnc_replayed_elsewhere_total"] == 1
