"""States that callers keep themselves."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from dnc_serve.client import BadState, Client, StateTooLarge
from dnc_serve.handler.api.state_seal import KeptState, StateSeal
from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.runtime.files import FileUnusable, check_files
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, chunk, open_door, outputs_of, refused
from tests.handler.harness import export_small, random_inputs
from tests.waiting import wait_until

DIGEST, OTHER_DIGEST = "1f" * 32, "2e" * 32


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return key_file(tmp_path_factory.mktemp("keys") / "keys", secrets.token_hex(32))


@pytest.fixture(scope="module")
def door(artifact_folder: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    state_dir = tmp_path_factory.mktemp("state")
    with open_door(artifact_folder, state_dir, state_keys=str(keys), slots=4, max_chunk_timesteps=64) as opened:
        yield opened


def key_file(path: Path, *keys: str) -> Path:
    path.write_text("# the first one signs\n" + "".join(f"{key}\n" for key in keys))
    return path


def step(door: Door, state: bytes, seed: int, timesteps: int = 3, **options: object) -> pb.StepWithStateResponse:
    request = pb.StepWithStateRequest(chunk=chunk("", random_inputs(seed, timesteps), **options), state=state)
    return door.stub.StepWithState(request, timeout=TIMEOUT)


def test_it_answers_what_a_session_would_and_stores_nothing(door: Door) -> None:
    session = door.create("s")
    state = b""
    for seed in range(5):
        answer = step(door, state, seed, 1 + seed, reset_experience=seed == 3)
        expected = door.step("s", random_inputs(seed, 1 + seed), reset_experience=seed == 3)
        assert answer.result.outputs == expected.outputs
        assert (answer.result.position, answer.result.experience) == (expected.position, expected.experience)
        state = answer.state
    listed = door.stub.ListSessions(pb.ListSessionsRequest(), timeout=TIMEOUT).sessions
    assert [one.incarnation for one in listed] == [session.incarnation]


def test_many_at_once_beside_sessions_get_the_bits_of_each_alone(door: Door) -> None:
    door.create("beside")

    def life(seed: int) -> list[bytes]:
        state, answers = b"", []
        for part in range(4):
            answer = step(door, state, 100 * seed + part)
            answers.append(answer.result.outputs.data)
            state = answer.state
        return answers

    alone = [life(seed) for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        together = pool.map(life, range(12))
        for seed in range(20):
            door.step("beside", random_inputs(seed, 2))
    assert list(together) == alone
    assert door.session("beside").position == 40


def test_an_older_state_goes_another_way_and_a_position_is_checked(door: Door) -> None:
    first = step(door, b"", 1)
    once, again = step(door, first.state, 2, position=3), step(door, first.state, 2, position=3, experience=0)
    assert once.result == again.result
    assert outputs_of(step(door, first.state, 3).result).tobytes() != outputs_of(once.result).tobytes()
    with refused("STEP_CONFLICT", StatusCode.ABORTED) as conflict:
        step(door, once.state, 2, position=3)
    assert conflict["expected_position"] == "6"
    with refused("STEP_GAP", StatusCode.FAILED_PRECONDITION):
        step(door, first.state, 2, position=6)
    with refused("BAD_REQUEST", StatusCode.INVALID_ARGUMENT):
        step(door, first.state, 2, incarnation=7)


def test_debug_arrays_come_along(door: Door) -> None:
    first = step(door, b"", 1)
    door.create("debugged")
    door.step("debugged", random_inputs(1, 3))
    expected = door.step("debugged", random_inputs(2, 3), debug=True)
    assert step(door, first.state, 2, debug=True).result.debug == expected.debug


def test_what_was_altered_anywhere_is_refused(door: Door) -> None:
    state = step(door, b"", 1).state
    random = np.random.default_rng(0)
    for place in [*range(100), *random.integers(0, len(state), 100), *range(len(state) - 40, len(state))]:
        altered = bytearray(state)
        altered[place] ^= 1 << random.integers(8)
        with refused("BAD_STATE", StatusCode.INVALID_ARGUMENT):
            step(door, bytes(altered), 2)
    for cut in (state[:-1], state[:40], b"x", state + b"\0"):
        with refused("BAD_STATE", StatusCode.INVALID_ARGUMENT):
            step(door, cut, 2)


def test_any_server_with_the_key_and_the_model_goes_on(
    door: Door, artifact_folder: Path, keys: Path, tmp_path: Path
) -> None:
    state = step(door, b"", 1).state
    expected = step(door, state, 2).result.outputs
    own = keys.read_text().split()[-1]
    rotated = key_file(tmp_path / "rotated", secrets.token_hex(32), own)
    with open_door(artifact_folder, tmp_path / "b", state_keys=str(rotated), durability="off") as other:
        answer = step(other, state, 2)
        assert answer.result.outputs == expected
        with refused("BAD_STATE", StatusCode.INVALID_ARGUMENT):  # the new key signed it, which the first hasn't
            step(door, answer.state, 3)
    other_model = export_small(tmp_path / "other-model", seed=8)
    with (
        open_door(other_model, tmp_path / "c", state_keys=str(keys)) as other,
        refused("MODEL_MISMATCH", StatusCode.FAILED_PRECONDITION),
    ):
        step(other, state, 2)
    with (
        open_door(artifact_folder, tmp_path / "d") as keyless,
        refused("BAD_REQUEST", StatusCode.INVALID_ARGUMENT),
    ):
        step(keyless, b"", 1)


def test_a_state_is_its_callers_alone(tmp_path: Path, keys: Path) -> None:
    seal = StateSeal(str(keys))
    kept = KeptState(DIGEST, 7, 2, np.arange(5, dtype=np.float32))
    sealed = seal.sealed(kept, "ward-3")
    opened = seal.opened(sealed, "ward-3", DIGEST, 5)
    assert opened.state is not None and opened.state.tolist() == [0, 1, 2, 3, 4]
    assert replace(opened, state=None) == replace(kept, state=None)
    for owner, digest, size, reason in (
        ("ward-4", DIGEST, 5, "BAD_STATE"),
        ("ward-3", OTHER_DIGEST, 5, "MODEL_MISMATCH"),
        ("ward-3", DIGEST, 6, "BAD_STATE"),
    ):
        with pytest.raises(ServeError) as caught:
            seal.opened(sealed, owner, digest, size)
        assert caught.value.reason == reason


def test_an_old_one_is_refused(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal = StateSeal(str(keys), max_age_s=60.0)
    sealed = seal.sealed(KeptState(DIGEST, 1, 0, np.zeros(5, np.float32)), "")
    now = CLOCK.now()
    monkeypatch.setattr(type(CLOCK), "now", lambda self: now + 59)
    seal.opened(sealed, "", DIGEST, 5)
    monkeypatch.setattr(type(CLOCK), "now", lambda self: now + 61)
    with pytest.raises(ServeError) as caught:
        seal.opened(sealed, "", DIGEST, 5)
    assert caught.value.reason == "STATE_EXPIRED"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "holds no key; expected a line of 64 hex digits"),
        ("# nothing\n", "holds no key"),
        ("ab\n", "line 1 is no key; expected 64 hex digits"),
        ("00" * 32 + "\n" + "0g" * 32, "line 2 is no key"),
    ],
)
def test_a_wrong_file_of_keys_is_told_at_the_start(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(FileUnusable) as caught:
        check_files(ServeConfig(state_dir=tmp_path, state_keys=str(path)))
    assert fault in str(caught.value)
    assert "0g0g" not in str(caught.value)
    with pytest.raises(FileUnusable) as caught:
        check_files(ServeConfig(state_dir=tmp_path, state_keys=str(tmp_path / "none")))
    assert "expected a file of keys (No such file or directory)" in str(caught.value)


def test_a_state_larger_than_a_message_is_for_sessions(artifact_folder: Path, keys: Path, tmp_path: Path) -> None:
    settings = {"state_keys": str(keys), "max_message_bytes": 66_000}
    with (
        open_door(artifact_folder, tmp_path, **settings) as small,
        Client(small.addresses.grpc) as client,
        pytest.raises(StateTooLarge),
    ):
        client.step_with_state(random_inputs(1, 2))


def test_the_client_library_cuts_long_inputs_and_names_what_is_wrong(door: Door) -> None:
    inputs = random_inputs(5, 150)  # the server takes 64 at once
    with Client(door.addresses.grpc) as client:
        with client.session() as session:
            expected = session.step(inputs)
        after = client.step_with_state(inputs[:10])
        rest = client.step_with_state(inputs[10:], bytearray(after.state))
        assert np.concatenate((after.outputs, rest.outputs)).tobytes() == expected.tobytes()
        assert (rest.position, rest.experience) == (150, 0)
        with pytest.raises(BadState, match="expected bytes, as `step_with_state` gives them"):
            client.step_with_state(inputs, "text")  # type: ignore[arg-type]
        with pytest.raises(BadState, match="isn't what StepWithState answered"):
            client.step_with_state(inputs, b"anything")


def test_keys_are_rotated_without_a_restart(artifact_folder: Path, tmp_path: Path) -> None:
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    path = key_file(tmp_path / "keys", old)
    with open_door(artifact_folder, tmp_path / "state", state_keys=str(path)) as door:
        by_old = step(door, b"", 1).state
        key_file(path, new, old)
        wait_until(lambda: step(door, by_old, 2).state[8:12] != by_old[8:12], "the new key signs")
        by_new = step(door, by_old, 2).state
        key_file(path, new)
        wait_until(lambda: is_refused(door, by_old), "the old key is gone")
        assert step(door, by_new, 3).result.position == 9


def is_refused(door: Door, state: bytes) -> bool:
    try:
        step(door, state, 3)
    except grpc.RpcError as error:
        assert "which this server hasn't (any more)" in str(error.details())
        return True
    return False


def test_a_wrong_file_of_keys_changes_nothing_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = key_file(tmp_path / "keys", secrets.token_hex(32))
    seal = StateSeal(str(path))
    sealed = seal.sealed(KeptState(DIGEST, 1, 0, np.zeros(5, np.float32)), "")
    path.write_text("no key\n")
    for _ in range(3):
        seal.refresh()
    path.unlink()
    seal.refresh()
    assert seal.opened(sealed, "", DIGEST, 5).position == 1
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "the state keys stay as they were" in told[0]
    assert "line 1 is no key" in told[0]
