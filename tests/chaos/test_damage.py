"""A journal cut at any byte, or with a flipped bit anywhere: what comes back is right, or it is refused."""

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.requests import Inspect, Reset
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.contract import StoreRefused
from dnc_serve.model.artifact import Artifact
from tests.chaos.truth import Truth, random_inputs
from tests.folders import memory_folder
from tests.handler.harness import running_engine

DATABASE, LOG = "sessions.db", "sessions.db-wal"
SESSIONS = 3
FLIPS, FLIPS_IN_SHORT = 1000, 60
CUTS_IN_SHORT = 60
LAST_COMMITS = 2

Place = tuple[int, int]  # (position, experience)


@dataclass(frozen=True, slots=True)
class Journal:
    """The files of a server that was killed, and what its sessions were through all of their lives."""

    database: bytes
    log: bytes
    commits: list[tuple[int, dict[str, Place]]]  # where the log ended after each, and where the sessions stood then
    states: dict[str, dict[Place, bytes]]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Thousands of stores are opened in it."""
    with memory_folder() as folder:
        yield folder


def config(state_dir: Path) -> ServeConfig:
    return ServeConfig(state_dir=state_dir, slots=8, snapshot_every_timesteps=12)


@pytest.fixture(scope="module")
def journal(runner: ModelRunner, artifact: Artifact, folder: Path) -> Journal:
    """Two lives of a server: of the first, all is in the database; of the second, in the log."""
    return asyncio.run(lived(runner, artifact, folder / "whole"))


async def lived(runner: ModelRunner, artifact: Artifact, state_dir: Path) -> Journal:
    chance = random.Random(1)
    truths = {f"s{number}": Truth(runner) for number in range(SESSIONS)}
    states: dict[str, dict[Place, bytes]] = {session_id: {} for session_id in truths}
    commits: list[tuple[int, dict[str, Place]]] = []
    places: dict[str, Place] = {}
    for _ in range(2):
        async with running_engine(runner, artifact, config(state_dir)) as harness:
            commits.clear()
            for number in range(36):
                session_id = f"s{number % SESSIONS}"
                session = harness.engine.table.find(session_id) or await harness.create(session_id)
                truth = truths[session_id]
                if chance.random() < 0.15:
                    scope = chance.choice(["experience", "all"])
                    await harness.do(session, lambda done, scope=scope: Reset(scope, done))
                    truth.reset(scope=scope)
                else:
                    inputs = random_inputs(np.random.default_rng(number), chance.randint(1, 5))
                    truth.step(inputs[:, None])
                    await harness.step(session, inputs)
                places[session_id] = session.position, session.experience
                states[session_id][places[session_id]] = truth.states.tobytes()
                commits.append(((state_dir / LOG).stat().st_size, dict(places)))
            database, log = (state_dir / DATABASE).read_bytes(), (state_dir / LOG).read_bytes()
    for session_id in states:
        states[session_id][0, 0] = np.zeros(runner.layout.size, np.float32).tobytes()
    return Journal(database, log, commits, states)


def put_files(state_dir: Path, database: bytes, log: bytes) -> None:
    shutil.rmtree(state_dir, ignore_errors=True)
    state_dir.mkdir()
    (state_dir / DATABASE).write_bytes(database)
    (state_dir / LOG).write_bytes(log)


async def opened(
    journal: Journal, state_dir: Path, runner: ModelRunner, artifact: Artifact, damage: str, database: bytes, log: bytes
) -> dict[str, Place | str]:
    """What an engine makes of the files: where each session stands, once its state was found right, or why it is
    refused."""
    put_files(state_dir, database, log)
    found: dict[str, Place | str] = {}
    try:
        async with running_engine(runner, artifact, config(state_dir)) as harness:
            for session_id, states in journal.states.items():
                session = harness.engine.table.find(session_id)
                if session is None:
                    found[session_id] = "UNKNOWN"
                    continue
                try:
                    seen = await harness.do(session, Inspect)
                except ServeError as error:
                    found[session_id] = error.reason
                    continue
                place = seen.head.position, seen.head.experience
                assert seen.state.tobytes() == states.get(place), f"{damage}: session {session_id} is wrong at {place}"
                found[session_id] = place
    except (ServeError, StoreRefused) as error:
        return dict.fromkeys(journal.states, type(error).__name__)
    return found


@pytest.mark.parametrize("count", [CUTS_IN_SHORT, pytest.param(None, marks=pytest.mark.long, id="all")])
async def test_a_log_cut_at_any_byte_of_its_last_records_opens_as_the_commits_before(
    journal: Journal, folder: Path, runner: ModelRunner, artifact: Artifact, count: int | None
) -> None:
    start, end = journal.commits[-1 - LAST_COMMITS][0], len(journal.log)
    cuts = range(start, end + 1) if count is None else sorted(random.Random(2).sample(range(start, end + 1), count))
    for cut in cuts:
        found = await opened(
            journal, folder / "cut", runner, artifact, f"cut at {cut}", journal.database, journal.log[:cut]
        )
        whole = [places for size, places in journal.commits if size <= cut]
        assert found == whole[-1], f"cut at {cut} of {end}"
    print(f"{len(cuts)} cuts: every one opened as the last whole commit before it")


@pytest.mark.parametrize("flips", [FLIPS_IN_SHORT, pytest.param(FLIPS, marks=pytest.mark.long)])
async def test_a_flipped_bit_is_never_believed(
    journal: Journal, folder: Path, runner: ModelRunner, artifact: Artifact, flips: int
) -> None:
    chance = random.Random(3)
    present = journal.commits[-1][1]
    outcomes: Counter[str] = Counter()
    for _ in range(flips):
        both = bytearray(journal.database + journal.log)
        place = chance.randrange(len(both))
        both[place] ^= 1 << chance.randrange(8)
        database, log = bytes(both[: len(journal.database)]), bytes(both[len(journal.database) :])
        found = await opened(journal, folder / "flip", runner, artifact, f"bit flipped at {place}", database, log)
        for session_id, outcome in found.items():
            earlier = "as it was" if outcome == present[session_id] else "as it was earlier"
            outcomes[outcome if isinstance(outcome, str) else earlier] += 1
    print(f"{sum(outcomes.values())} sessions after a flipped bit: {dict(outcomes)}, 0 wrong")
    assert outcomes["as it was"]
