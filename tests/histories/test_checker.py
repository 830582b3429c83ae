"""The checker accepts what a real server answers, also when it is killed, and finds each mistake that is planted."""

import random
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from dnc_serve.client import Client
from tests.handler.harness import export_small, random_inputs
from tests.histories.__main__ import judged
from tests.histories.checker import check
from tests.histories.load import load
from tests.histories.mutations import MUTATIONS, History
from tests.histories.operations import NEVER, Operation, read
from tests.histories.recorder import recorded
from tests.histories.shrink import shrunk
from tests.server_process import ServerProcess
from tests.waiting import wait_until

CALLS, CALLS_ALONE = 100, 600
WAYS = 50  # of each mutation, of which one is chosen


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("histories")
    server = ServerProcess(export_small(folder / "artifact"), folder / "state", snapshot_every_timesteps=20)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def good(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> list[Operation]:
    """What one writer calls has a place for every mistake, in each run; the others get into each other's way."""
    path = tmp_path_factory.mktemp("history") / "history.jsonl"
    with recorded(path):
        load(server.address, seed=1, calls=CALLS_ALONE, prefix="alone", writers=1)
        load(server.address, seed=1, calls=CALLS)
        with Client(server.address) as client, client.session("durable") as session:
            session.step(random_inputs(1, 3))
            wait_until(lambda: session.info().durable_position == 3, "it is durable")
    return read(path)


def test_what_a_server_answers_is_explained(good: list[Operation]) -> None:
    assert not check(good), check(good)[0]
    kinds = {one.kind for one in good if one.answer is not None}
    assert kinds >= {"create", "get", "delete", "step", "reset", "copied", "made", "dump", "replay", "export"}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_mistake_is_found(name: str, good: list[Operation]) -> None:
    chance = random.Random(name)
    ways = list(islice(MUTATIONS[name](History(good, chance)), WAYS))
    assert ways, "the history has no place for it"
    assert check(chance.choice(ways)), "not found"


def test_killed_servers_are_explained(server: ServerProcess, tmp_path: Path) -> None:
    """Calls without an answer may have been applied or not."""
    path = tmp_path / "history.jsonl"
    with recorded(path):
        loading = threading.Thread(target=load, args=(server.address, 2, CALLS), kwargs={"prefix": "killed"})
        loading.start()
        for number in range(1, 4):
            while loading.is_alive() and path.stat().st_size < number * 100_000:
                loading.join(0.01)
            server.kill()
            server.start()
        loading.join()
    operations = read(path)
    assert not check(operations), check(operations)[0]
    assert any(one.answered == NEVER for one in operations)


def test_the_smallest_failing_part_is_shown(good: list[Operation], capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(1)
    bad = chance.choice(list(islice(MUTATIONS["a_stored_reply_goes_to_another_writer"](History(good, chance)), WAYS)))
    smallest, _ = shrunk(bad, check(bad)[0])
    assert len([one for one in smallest if one.is_settled]) < 10
    assert judged(bad) == 1
    assert "FAULTS" in capsys.readouterr().out


def test_only_a_power_loss_takes_what_was_not_durable() -> None:
    def get(at: float, position: int, durable: int) -> Operation:
        session = {"incarnation": 1, "position": position, "durable_position": durable}
        return Operation("get", "s", at, {}, at + 0.5, {"session": session})

    def step(at: float, position: int) -> Operation:
        request = {"incarnation": 1, "position": position, "inputs": ["a"]}
        answer = {"incarnation": 1, "position": position + 1, "outputs": [str(position)]}
        return Operation("step", "s", at, request, at + 0.5, answer)

    made = Operation("create", "s", 0, {}, 0.5, {"created": True, "session": {"incarnation": 1}})
    before = [made, step(1, 0), step(2, 1), step(3, 2)]
    loss = Operation("loss", "", 5, {}, 5.5, {})
    assert not check([*before, get(4, 3, 1), loss, get(6, 1, 1), step(7, 1)])
    assert check([*before, get(4, 3, 1), get(6, 1, 1)])
    assert check([*before, get(4, 3, 2), loss, get(6, 1, 1)])
    assert not check([*before, loss, Operation("get", "s", 6, {}, 7, None, {"reason": "SESSION_NOT_FOUND"})])
