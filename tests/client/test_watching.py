"""Looking at a session from the library: frames while it works, and looks at the past."""

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnc_serve.client import AsyncClient, BadRequest, Client, SessionNotFound, Unavailable
from dnc_serve.handler.api.watch import Feeds
from tests.handler.door import Door, open_door
from tests.handler.harness import random_inputs
from tests.server_process import REPOSITORY, ServerProcess
from tests.waiting import wait_until


@pytest.fixture
def door(small_artifact: Path, tmp_path: Path) -> Iterator[Door]:
    with open_door(small_artifact, tmp_path / "state") as door:
        yield door


def until_unwatched(door: Door) -> None:
    observers = door.server._models.default.engine.observers._observers
    wait_until(lambda: not any(isinstance(one, Feeds) for one in observers), "the server sends no frames any more")


def test_a_look_is_a_thinned_dump(door: Door) -> None:
    with Client(door.addresses.grpc) as client, client.session() as session:
        assert session.dump(["interface"]) == {}
        session.step(random_inputs(1, 4))
        session.step(random_inputs(2, 3))
        dump = session.dump(position=4)
        look = session.look(position=4)
        assert (look.position, look.experience) == (4, 0)
        assert list(look.arrays) == list(dump)
        for name, array in look.arrays.items():
            assert array.shape == look.full_shapes[name]
            assert array.tobytes() == dump[name].tobytes()
        thinned = session.look(["link_matrix"], max_cells=10)
        assert thinned.arrays["link_matrix"].size <= 10
        assert thinned.full_shapes == {"link_matrix": (1, 1, 12, 12)}
        assert thinned.position == 7
        gates, whole = session.look(["interface"], position=4), session.dump(["interface"], position=4)
        assert gates.arrays["read_modes"].ravel().tolist() == whole["read_modes"].ravel().tolist()
        assert set(gates.arrays) == set(whole)


@pytest.mark.parametrize("max_cells", [0, -1, 1 << 32])
def test_a_limit_that_is_none_is_refused(door: Door, max_cells: int) -> None:
    with Client(door.addresses.grpc) as client, client.session() as session:
        with pytest.raises(BadRequest, match=f"max_cells is {max_cells}, expected a whole number from 1"):
            session.look(max_cells=max_cells)
        with pytest.raises(BadRequest, match=f"max_cells is {max_cells}, expected a whole number from 1"):
            next(session.watch(max_cells=max_cells))


def test_who_stops_looking_is_sent_nothing_more(door: Door) -> None:
    with Client(door.addresses.grpc) as client, client.session("closed") as session:
        frames = session.watch()
        next(frames)
        frames.close()
        until_unwatched(door)
        for _ in session.watch():
            break
        until_unwatched(door)
        session.step(random_inputs(3, 1))


async def test_an_asynchronous_watch_is_closed_at_once(door: Door) -> None:
    async with AsyncClient(door.addresses.grpc) as client, client.session("async") as session:
        frames = session.watch()
        await anext(frames)
        await frames.aclose()
        until_unwatched(door)


@pytest.mark.parametrize(
    "end",
    [
        "frames.close(); client.close()",
        "del frames; client.close()",
        "client.close(); frames.close()",
        "client.close()",
    ],
)
def test_a_watch_that_is_left_leaves_nothing_pending(door: Door, end: str) -> None:
    script = f"""
        from dnc_serve.client import Client
        for _ in range(4):
            client = Client({door.addresses.grpc!r})
            session = client.session("left")
            frames = session.watch(["memory"])
            next(frames)
            session.step({random_inputs(6, 1).tolist()})
            {end}
    """
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(script)],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    # In this mode asyncio also tells what was slow, as all is on a busy machine.
    told = [line for line in ended.stderr.splitlines() if not line.startswith("Executing <")]
    assert (ended.returncode, told) == (0, [])


@pytest.fixture
def killable(small_artifact: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(small_artifact, tmp_path / "state")
    server.start()
    yield server
    server.kill()


def test_frames_go_on_when_a_killed_server_is_back(killable: ServerProcess) -> None:
    with Client(killable.address) as client, client.session("watched") as session:
        session.step(random_inputs(4, 5))
        frames = session.watch(["memory", "interface"])
        before = next(frames)
        killable.kill()
        starting = threading.Timer(0.5, killable.start)
        starting.start()
        after = next(frames)  # waits until there is a server again
        starting.join()
        assert after.position == before.position == 5
        assert after.arrays["memory"].tobytes() == before.arrays["memory"].tobytes()
        assert after.arrays["read_modes"].tobytes() == before.arrays["read_modes"].tobytes()
        session.step(random_inputs(5, 2))
        assert next(frames).position == 7


def test_without_further_attempts_a_lost_server_is_an_error(killable: ServerProcess) -> None:
    with Client(killable.address, retry=None) as client, client.session() as session:
        frames = session.watch()
        next(frames)
        killable.kill()
        with pytest.raises(Unavailable):
            next(frames)


def test_a_session_that_did_not_outlive_the_server_ends_its_frames(small_artifact: Path, tmp_path: Path) -> None:
    server = ServerProcess(small_artifact, tmp_path / "state", durability="off")
    server.start()
    try:
        with Client(server.address) as client, client.session("gone") as session:
            frames = session.watch()
            next(frames)
            server.kill()
            server.start()
            with pytest.raises(SessionNotFound):
                next(frames)
            with pytest.raises(StopIteration):
                next(frames)
    finally:
        server.kill()
