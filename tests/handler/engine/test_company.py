import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnc_serve.handler.engine.company import (
    GAP_SECONDS,
    LONGER_FOR_REPLAYS,
    MOST_SECONDS_AWAY,
    MOST_SECONDS_WAITED,
    Gathering,
    Rotation,
    Run,
    gather_inputs,
)
from dnc_serve.handler.engine.sessions import Replies, Session
from dnc_serve.handler.engine.tiles import Tiles
from dnc_serve.handler.engine.work import Chunk, Replay
from dnc_serve.model.export import Artifact

LONG_TURN_SECONDS = 60.0


@pytest.fixture(scope="module")
def small(artifact: Artifact) -> Tiles:
    return Tiles(artifact, "cpu", candidates=(12, 16))


def largest(tiles: Tiles) -> int:
    return tiles.largest


def worthwhile(tiles: Tiles) -> int:
    return tiles.worthwhile


def a_run(timesteps: int, tiles: Tiles) -> Run:
    session = Session("s", 1, "", "", 0.0, 0.0, Replies(1, 1), row=0)
    chunk = Chunk(np.arange(timesteps, dtype=np.float32).reshape(-1, 1), lambda result, error: None)
    return Run(session, chunk, np.zeros((timesteps, 1), np.float32), 1, tiles)


def a_replay(timesteps: int, tiles: Tiles) -> Run:
    run = a_run(timesteps, tiles)
    run.work = Replay(run.work.inputs, run.outputs, "", "", lambda result, error: None)
    return run


def test_a_long_chunk_does_not_hold_up_short_ones(small: Tiles) -> None:
    rotation = Rotation(LONG_TURN_SECONDS, largest)
    long, short = a_run(1000, small), a_run(2, small)
    rotation.add(long)
    rotation.add(short)
    turns = []
    for _ in range(2):
        company, ticks = rotation.next_company()
        turns.append((short in company, ticks))
        for run in company:
            run.done += ticks
        rotation.put_back([run for run in company if run.rest])
    assert (True, 2) in turns


def test_short_chunks_do_not_hold_up_a_long_one(small: Tiles) -> None:
    rotation = Rotation(LONG_TURN_SECONDS, largest)
    long = a_run(64, small)
    rotation.add(long)
    for _ in range(3):
        rotation.add(a_run(1, small))
    company, ticks = rotation.next_company()
    assert company == [long]
    assert ticks == 64


def test_of_two_companies_of_like_chunks_one_is_through_before_the_other_begins(small: Tiles) -> None:
    rotation = Rotation(2 * small.seconds(small.worthwhile) * 1.01, worthwhile)  # two ticks a turn
    runs = [a_run(8, small) for _ in range(2 * small.worthwhile)]
    for run in runs:
        rotation.add(run)
    through: list[Run] = []
    while rotation:
        company, ticks = rotation.next_company()
        for run in company:
            run.done += ticks
        through += [run for run in company if not run.rest]
        rotation.put_back([run for run in company if run.rest])
        begun = [run for run in runs if run.done and run.rest]
        assert len(begun) <= small.worthwhile
    assert through == runs


@given(chunks=st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=60))
def test_everyone_is_through_after_as_many_ticks_as_asked(
    small: Tiles, tiles: Tiles, chunks: list[tuple[int, bool]]
) -> None:
    rotation = Rotation(LONG_TURN_SECONDS, worthwhile)
    runs = [a_run(length, tiles if other else small) for length, other in chunks]
    for run in runs:
        rotation.add(run)
    turns = 0
    while rotation:
        company, ticks = rotation.next_company()
        assert len({run.tiles for run in company}) == 1
        assert 1 <= len(company) <= company[0].tiles.worthwhile
        assert len(set(map(id, company))) == len(company)
        assert 1 <= ticks <= min(run.rest for run in company)
        for run in company:
            run.done += ticks
        rotation.put_back([run for run in company if run.rest])
        turns += 1
        assert turns <= sum(length for length, _ in chunks)
    assert all(run.rest == 0 for run in runs)


def test_replays_fill_the_largest_tile_and_take_longer_turns_while_they_are_alone(small: Tiles) -> None:
    turn_seconds = 2 * small.seconds(small.largest)
    rotation = Rotation(turn_seconds, largest)
    replays = [a_replay(100 if place % 2 else 40, small) for place in range(2 * small.largest)]
    for run in replays:
        rotation.add(run)
    company, ticks = rotation.next_company()
    assert company == replays[: small.largest]
    assert ticks == 2 * LONGER_FOR_REPLAYS
    rotation.put_back(company)
    short, long = a_run(1, small), a_run(1000, small)
    rotation.add(short)
    rotation.add(long)
    assert rotation.next_company() == ([short, long], 1)  # not in the company of replays
    rotation.put_back([long])
    for _ in range(2):
        company, ticks = rotation.next_company()
        assert ticks <= 2  # somebody waits
        rotation.put_back(company)


def test_the_oldest_get_every_other_turn_however_many_short_ones_come(small: Tiles) -> None:
    rotation = Rotation(2 * small.seconds(1), largest)
    replay, long = a_replay(1000, small), a_run(1000, small)
    rotation.add(replay)
    rotation.add(long)
    rounds = 40
    for _ in range(rounds):
        for _ in range(small.largest):
            rotation.add(a_run(3, small))  # more than a turn's worth
        rotation.take_back(rotation.next_company()[0])  # a look at what comes next takes nobody's turn
        company, ticks = rotation.next_company()
        for run in company:
            run.done += ticks
        rotation.put_back([run for run in company if run.rest])
    assert replay.done >= rounds // 4
    assert long.done + replay.done >= rounds // 2


def test_turns_share_the_ticks_of_a_chunk_alike(small: Tiles) -> None:
    rotation = Rotation(11.5 * small.seconds(1), largest)
    run = a_run(16, small)
    rotation.add(run)
    assert rotation.next_company() == ([run], 8)


def test_inputs_stand_at_their_places_and_padding_is_zero(small: Tiles) -> None:
    runs = [a_run(5, small), a_run(9, small)]
    runs[1].done = 4
    inputs = gather_inputs(runs, ticks=3, tile=8, input_size=1)
    assert inputs.shape == (3, 8, 1)
    assert inputs[:, 0, 0].tolist() == [0, 1, 2]
    assert inputs[:, 1, 0].tolist() == [4, 5, 6]
    assert not inputs[:, 2:].any()


def in_turn(gathering: Gathering, sessions: list[Session], away: float, times: int) -> float:
    """Sessions that step one after the other, each coming again so long after it was answered; the time afterwards."""
    now = 100.0
    for _ in range(times):
        for session in sessions:
            gathering.arrived(session, now)
            gathering.stepped(1)
            now += away / len(sessions)
            gathering.answered(session, now)
    return now


def sessions_of(count: int) -> list[Session]:
    return [Session(f"s{number}", 1, "", "", 0.0, 0.0, Replies(1, 1), row=number) for number in range(count)]


def test_who_was_answered_a_moment_ago_is_waited_for() -> None:
    gathering, (one, other) = Gathering(), sessions_of(2)
    now = in_turn(gathering, [one, other], away=0.001, times=50)
    gathering.arrived(one, now)
    assert gathering.waits(1, now + 0.0005)
    gathering.arrived(other, now + 0.0006)
    assert not gathering.waits(2, now + 0.0006)


def test_who_does_not_come_is_waited_for_no_longer() -> None:
    gathering, (one, other) = Gathering(), sessions_of(2)
    now = in_turn(gathering, [one, other], away=0.001, times=50)
    gathering.arrived(one, now)
    assert not gathering.waits(1, now + MOST_SECONDS_AWAY)
    # A client that thinks before it goes on is not waited for at all.
    for _ in range(50):
        gathering.answered(other, now)
        now += 1.0
        assert not gathering.waits(1, now)
    gathering.answered(other, now)
    assert not gathering.waits(1, now)


def test_a_session_that_is_alone_waits_for_nobody() -> None:
    gathering, (alone,) = Gathering(), sessions_of(1)
    now = in_turn(gathering, [alone], away=0.001, times=50)
    gathering.arrived(alone, now)
    assert not gathering.waits(1, now)


def test_as_many_as_stepped_together_lately_are_waited_for_while_they_come() -> None:
    gathering, sessions = Gathering(), sessions_of(3)
    gathering.stepped(3)
    for waiting, session in enumerate(sessions, 1):
        gathering.arrived(session, 100.0)
        assert gathering.waits(waiting, 100.0) == (waiting < 3)
    assert not gathering.waits(2, 100.0 + 2 * GAP_SECONDS)


def test_who_follows_closely_is_not_waited_for_for_ever(small: Tiles) -> None:
    gathering, rotation = Gathering(), Rotation(LONG_TURN_SECONDS, largest)
    gathering.stepped(64)
    run = a_run(1, small)
    rotation.add(run)
    now = began = 100.0
    gathering.arrived(run.session, now)
    while rotation.waits(gathering, now):  # a session whose chunks come one upon the other
        now += GAP_SECONDS / 2
        gathering.arrived(run.session, now)
        assert now - began <= 2 * MOST_SECONDS_WAITED
    assert now > began
    rotation.next_company()
    rotation.add(a_run(1, small))
    assert rotation.waits(gathering, now)
