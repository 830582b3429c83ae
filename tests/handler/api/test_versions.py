"""Versions of a model that come and go while the server runs."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dnc_serve.client import (
    Client,
    ModelInUse,
    ModelMismatch,
    ModelNotFound,
    ModelUnusable,
    PermissionDenied,
    PositionGone,
    StepConflict,
)
from dnc_serve.client.arrays import Float32
from dnc_serve.client.cli.main import main
from dnc_serve.model import export
from tests.handler.door import Door, open_door
from tests.handler.harness import LSTM_INPUTS, LSTM_UNITS, export_lstm
from tests.handler.store.conftest import running_redis
from tests.waiting import wait_until

TOKEN = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"


@pytest.fixture(scope="session")
def lstms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of one shape, and one of another."""
    folders = [export_lstm(tmp_path_factory.mktemp(f"lstm-{seed}"), seed) for seed in range(3)]
    wider = tmp_path_factory.mktemp("wider")
    export(torch.nn.LSTM(LSTM_INPUTS, LSTM_UNITS + 1), wider)
    return [*folders, wider]


@pytest.fixture
def door(lstms: list[Path], tmp_path: Path) -> Iterator[Door]:
    with open_door(lstms[0], tmp_path, model=[f"risk={lstms[0]}"]) as door:
        yield door


@pytest.fixture
def client(door: Door) -> Iterator[Client]:
    with Client(door.addresses.grpc) as client:
        yield client


def inputs(seed: int, timesteps: int = 3) -> Float32:
    return np.random.default_rng(seed).standard_normal((timesteps, LSTM_INPUTS)).astype(np.float32)


def listed(client: Client) -> list[tuple[str, str, int]]:
    return [(model.name, model.version, model.sessions) for model in client.models()]


def answers(lstm: Path, tmp_path: Path, *chunks: Float32) -> list[bytes]:
    """What a new session of a model answers."""
    with (
        open_door(lstm, tmp_path / "alone") as door,
        Client(door.addresses.grpc) as client,
        client.session() as session,
    ):
        return [session.step(chunk).tobytes() for chunk in chunks]


def test_new_sessions_are_of_the_newest_version_and_old_ones_stay(
    client: Client, lstms: list[Path], tmp_path: Path
) -> None:
    with client.session("old") as old:
        first = old.step(inputs(0)).tobytes()
        loaded = client.load_model("risk", str(lstms[1]))
        assert (loaded.name, loaded.version, loaded.share) == ("risk", "2", None)
        assert listed(client) == [("risk", "2", 0), ("risk", "1", 1)]
        with client.session("new") as new, client.session("pinned") as pinned:
            assert (new.info().model_version, old.info().model_version) == ("2", "1")
            assert [new.step(inputs(0)).tobytes()] == answers(lstms[1], tmp_path, inputs(0))
            assert pinned.info().model_digest == loaded.digest
        assert [first, old.step(inputs(1)).tobytes()] == answers(lstms[0], tmp_path, inputs(0), inputs(1))
        assert old.fork("fork").info().model_version == "1"
        blob = old.export()
        with client.import_session("imported", blob) as imported:
            assert imported.info().model_version == "1"
    assert (client.model("risk", "1").digest, client.model("risk", "2").digest) != (loaded.digest, loaded.digest)
    with pytest.raises(ModelNotFound, match="'risk' has no version '3', expected one of 1, 2"):
        client.model("risk", "3")


def test_the_command_line_goes_by_the_version_of_the_session(client: Client, door: Door, tmp_path: Path) -> None:
    export(torch.nn.LSTM(LSTM_INPUTS + 1, LSTM_UNITS), tmp_path / "other")
    client.session("old").close()
    client.load_model("risk", str(tmp_path / "other"))
    for session_id, width in (("old", LSTM_INPUTS), ("new", LSTM_INPUTS + 1)):
        np.save(tmp_path / "inputs.npy", np.ones((2, width), np.float32))
        at = ["--target", door.addresses.grpc]
        assert main(["step", session_id, str(tmp_path / "inputs.npy"), *at]) == 0
        assert client.session(session_id, create=False).position == 2


def test_what_cannot_be_loaded_changes_nothing(client: Client, door: Door, lstms: list[Path], tmp_path: Path) -> None:
    with client.session("s") as session:
        session.step(inputs(0))
        for source, error, said in (
            ("no-such-folder", ModelUnusable, "no-such-folder can't be served: model is 'no-such-folder'; expected"),
            (str(lstms[0]), ModelInUse, "is what 'risk' has as version '1' already"),
        ):
            with pytest.raises(error, match=said):
                client.load_model("risk", source)
        damaged = tmp_path / "damaged"
        shutil.copytree(lstms[1], damaged)
        (damaged / "program.pt2").write_bytes(b"no program")
        with pytest.raises(ModelUnusable, match="can't be served"):
            client.load_model("risk", str(damaged))
        for wrong in ({"version": "../x"}, {"version": "a b"}, {"share": 1.5}, {"name": "a/b"}):
            with pytest.raises(Exception, match="expected"):
                client.load_model(**({"name": "risk", "source": str(lstms[1])} | wrong))
        with pytest.raises(ModelInUse, match="has a version '1' already"):
            client.load_model("risk", str(lstms[1]), "1")
        assert listed(client) == [("risk", "1", 1)]
        assert not list((door.server._config.state_dir / "versions").glob("*/*"))
        assert session.step(inputs(1)).shape == (3, LSTM_UNITS)


def test_a_share_of_new_sessions(client: Client, lstms: list[Path]) -> None:
    client.load_model("risk", str(lstms[1]), "canary", share=0.25)

    def version_of(name: str) -> str:
        with client.session(name) as session:
            return session.info().model_version

    names = [f"session-{number}" for number in range(40)]
    points = {
        name: int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64 for name in names
    }
    assert {name: version_of(name) for name in names} == {
        name: "canary" if points[name] < 0.25 else "1" for name in names
    }
    client.load_model("risk", version="canary", share=1.0)
    assert [version_of(f"more-{number}") for number in range(3)] == ["canary"] * 3
    client.load_model("risk", version="canary")
    assert client.models()[0].version == "canary"


def test_a_session_goes_on_with_another_version(client: Client, door: Door, lstms: list[Path]) -> None:
    with client.session("mover") as session, client.session("control") as control:
        for one in (session, control):
            one.step(inputs(0))
        state = session.dump()
        client.load_model("risk", str(lstms[1]))
        assert session.migrate()
        assert not session.migrate()
        info = session.info()
        assert (info.model_version, info.position, info.earliest_position) == ("2", 3, 3)
        assert info.model_digest == client.model("risk", "2").digest
        for name, array in session.dump().items():
            assert array.tobytes() == state[name].tobytes()
        after = session.step(inputs(1)).tobytes()
        assert after != control.step(inputs(1)).tobytes()
        with pytest.raises(PositionGone):
            session.dump(position=2)
        assert session.fork("back", 3).step(inputs(1)).tobytes() == after
        with pytest.raises(ModelNotFound):
            session.migrate("7")
        client.load_model("risk", str(lstms[3]), "wider")
        with pytest.raises(ModelMismatch, match="has other inputs, outputs, or fields"):
            session.migrate("wider")
        assert session.migrate("1")
        assert session.info().model_version == "1"
    # What was answered before the move is known still.
    with client.session("mover", position=0, experience=0, writer_id=session.writer_id) as again:
        assert again.step(inputs(0)).shape == (3, LSTM_UNITS)
    with client.session("mover", position=0, experience=0) as another, pytest.raises(StepConflict):
        another.step(inputs(0))


def test_a_move_is_recovered_after_a_crash(lstms: list[Path], tmp_path: Path) -> None:
    state = tmp_path / "state"
    with open_door(lstms[0], state, model=[f"risk={lstms[0]}"]) as door, Client(door.addresses.grpc) as client:
        with client.session("mover") as session:
            session.step(inputs(0))
            client.load_model("risk", str(lstms[1]))
            session.migrate()
            session.step(inputs(1))
            fork = session.fork("fork")
            expected = fork.step(inputs(2)).tobytes()
        for one in door.server._keeper.served:  # as if it were killed: records alone are there
            one.engine.snapshots.store_all = _nothing
    with open_door(lstms[0], state, model=[f"risk={lstms[0]}"]) as door, Client(door.addresses.grpc) as client:
        assert [version for _, version, _ in listed(client)] == ["2", "1"]
        with client.session("mover") as again:
            assert (again.position, again.info().model_version, again.info().earliest_position) == (6, "2", 3)
            assert again.step(inputs(2)).tobytes() == expected
            with pytest.raises(PositionGone):
                again.dump(position=1)
        with client.session("mover", position=0, experience=0, writer_id=session.writer_id) as before:
            before.step(inputs(0))  # answered from its record, which another model's state can't follow from


async def _nothing(sessions: object) -> None:
    pass


def test_a_version_is_unloaded_when_nobody_needs_it(client: Client, door: Door, lstms: list[Path]) -> None:
    client.load_model("risk", str(lstms[1]), "2")
    for number in range(70):
        client.session(f"s-{number}").step(inputs(number))
    client.load_model("risk", str(lstms[2]), "3")
    with pytest.raises(ModelInUse, match="version '2' of 'risk' has 70 sessions") as caught:
        client.unload_model("risk", "2")
    assert caught.value.metadata == {"sessions": "70"}
    assert client.session("after").info().model_version == "3"
    assert client.unload_model("risk", "2", carry_over=True) == 70
    assert [version for _, version, _ in listed(client)] == ["3", "1"]
    for number in range(70):
        with client.session(f"s-{number}") as session:
            assert (session.position, session.info().model_version) == (3, "3")
            session.step(inputs(0))
    with pytest.raises(ModelNotFound):
        client.unload_model("risk", "2")
    # Another model may come, and go as a whole.
    client.load_model("other", str(lstms[1]))
    with client.session(model="other") as session:
        assert session.info().model_version == "1"
        session.delete()
    client.unload_model("other", "1")
    # What the server was started with goes too, as long as it isn't the last.
    client.unload_model("risk", "1")
    assert listed(client) == [("risk", "3", 71)]
    with pytest.raises(ModelInUse, match="has no other version than '3'"):
        client.unload_model("risk", "3")


def test_loaded_versions_are_there_after_a_restart(lstms: list[Path], tmp_path: Path) -> None:
    state = tmp_path / "state"
    with open_door(lstms[0], state, model=[f"risk={lstms[0]}"]) as door, Client(door.addresses.grpc) as client:
        source = tmp_path / "v2"
        shutil.copytree(lstms[1], source)
        client.load_model("risk", str(source), share=0.0)
        client.load_model("other", str(lstms[2]))
        client.session("old").step(inputs(0))
        with client.session("of-other", model="other") as session:
            session.step(inputs(0))
        shutil.rmtree(source)
    with open_door(lstms[0], state, model=[f"risk={lstms[0]}"]) as door, Client(door.addresses.grpc) as client:
        assert listed(client) == [("risk", "1", 1), ("risk", "2", 0), ("other", "1", 1)]
        assert client.models()[1].share == 0.0
        assert client.session("of-other").position == 3
        # What is damaged there is told, and keeps nothing else from being served.
    (state / "versions" / "risk" / "2" / "manifest.json").write_text("{}")
    with open_door(lstms[0], state, model=[f"risk={lstms[0]}"]) as door, Client(door.addresses.grpc) as client:
        assert listed(client) == [("risk", "1", 1), ("other", "1", 1)]
        client.load_model("risk", str(lstms[1]), "3")
    # A version that is configured now was loaded before.
    with open_door(lstms[1], state, model=[f"risk={lstms[1]}"]) as door, Client(door.addresses.grpc) as client:
        assert listed(client)[0] == ("risk", "3", 1)
        client.load_model("risk", str(lstms[0]), "4")
        client.unload_model("risk", "3", carry_over=True)
    # What is configured was unloaded: it doesn't come back.
    with open_door(lstms[1], state, model=[f"risk={lstms[1]}"]) as door, Client(door.addresses.grpc) as client:
        assert listed(client) == [("risk", "4", 1), ("other", "1", 1)]
    # What is configured anew is newer than what was loaded before.
    with open_door(lstms[2], state, model=[f"risk={lstms[2]}"]) as door, Client(door.addresses.grpc) as client:
        assert listed(client) == [("risk", "5", 0), ("risk", "4", 1), ("other", "1", 1)]


def test_who_may(lstms: list[Path], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    for admin, outcome in (("", PermissionDenied), ("admin = true", None)):
        tokens.write_text(f'[[token]]\nname = "ward"\nsha256 = "{TOKEN}"\n{admin}\n')
        with (
            open_door(lstms[0], tmp_path / "state", tokens=str(tokens)) as door,
            Client(door.addresses.grpc, token="secret") as client,
        ):
            if outcome is None:
                assert client.load_model("copy", str(lstms[1])).version == "2"
            else:
                with pytest.raises(outcome, match="the token of 'ward' may not load or unload models"):
                    client.load_model("copy", str(lstms[1]))
                with pytest.raises(outcome):
                    client.unload_model("copy", "1")


def test_versions_over_a_shared_store(lstms: list[Path], tmp_path: Path) -> None:
    with (
        running_redis() as redis,
        open_door(lstms[0], tmp_path / "a", store=redis.url, lease_s=60.0) as door,
        Client(door.addresses.grpc) as client,
        client.session("s") as session,
    ):
        session.step(inputs(0))
        client.load_model("copy", str(lstms[1]))
        client.session("t")
        versions = {info.id: info.model_version for info in client.sessions()}
        assert versions == {"s": "1", "t": "2"}
        session.migrate()
        assert session.step(inputs(1)).shape == (3, LSTM_UNITS)
        assert {info.id: info.model_version for info in client.sessions()} == {"s": "2", "t": "2"}
        with pytest.raises(PositionGone):
            session.dump(position=1)


def test_durability_off(lstms: list[Path], tmp_path: Path) -> None:
    settings = {"durability": "off", "slots": 2, "host_bytes": 4096}
    with open_door(lstms[0], tmp_path, **settings) as door, Client(door.addresses.grpc) as client:
        sessions = [client.session(f"s-{number}") for number in range(80)]
        for session in sessions:
            session.step(inputs(0))
        client.load_model("copy", str(lstms[1]))
        for session in sessions:
            assert session.migrate()
        after = {session.step(inputs(1)).tobytes() for session in sessions}
        assert len(after) == 1


def test_a_folder_is_watched(lstms: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "models"
    settings = {"model": [f"risk={lstms[0]}"], "model_folder": str(folder)}
    with open_door(lstms[0], tmp_path / "state", **settings) as door, Client(door.addresses.grpc) as client:
        (folder / "risk").mkdir(parents=True)
        shutil.copytree(lstms[1], folder / "risk" / "20261129")  # file by file, the manifest among them
        wait_until(lambda: client.models()[0].version == "20261129", "it is loaded, and new sessions are of it")
        damaged = folder / "other" / "1"
        shutil.copytree(lstms[2], damaged)
        (damaged / "program.pt2").write_bytes(b"no program")
        shutil.copytree(lstms[2], folder / "third" / "1")
        wait_until(lambda: client.models()[-1].name == "third", "what is whole is loaded, whatever isn't")
        shutil.copyfile(lstms[2] / "program.pt2", damaged / "program.pt2")
        wait_until(lambda: {model.name for model in client.models()} == {"risk", "other", "third"}, "it was mended")
