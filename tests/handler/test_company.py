import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dnc_serve.handler.company import Rotation, Run, gather_inputs
from dnc_serve.handler.sessions import Replies, Session
from dnc_serve.handler.work import Chunk

SIZES = (8, 16)


def a_run(timesteps: int) -> Run:
    session = Session("s", 1, "", "", 0.0, 0.0, Replies(1, 1), row=0)
    chunk = Chunk(np.arange(timesteps, dtype=np.float32).reshape(-1, 1), lambda result, error: None)
    return Run(session, chunk, np.zeros((timesteps, 1), np.float32), 1)


def test_a_long_chunk_does_not_hold_up_short_ones() -> None:
    rotation = Rotation(largest_tile=16, max_ticks=64)
    long, short = a_run(1000), a_run(2)
    rotation.add(long)
    rotation.add(short)
    turns = []
    for _ in range(2):
        company, ticks = rotation.next_company(SIZES)
        turns.append((short in company, ticks))
        for run in company:
            run.done += ticks
            if run.rest:
                rotation.add(run)
    assert (True, 2) in turns


def test_short_chunks_do_not_hold_up_a_long_one() -> None:
    rotation = Rotation(largest_tile=16, max_ticks=64)
    long = a_run(64)
    rotation.add(long)
    for _ in range(3):
        rotation.add(a_run(1))
    company, ticks = rotation.next_company(SIZES)
    assert company == [long]
    assert ticks == 64


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_everyone_is_through_after_as_many_ticks_as_asked(lengths: list[int]) -> None:
    rotation = Rotation(largest_tile=16, max_ticks=32)
    runs = [a_run(length) for length in lengths]
    for run in runs:
        rotation.add(run)
    turns = 0
    while rotation:
        company, ticks = rotation.next_company(SIZES)
        assert 1 <= len(company) <= 16
        assert len(set(map(id, company))) == len(company)
        assert 1 <= ticks <= min(run.rest for run in company)
        for run in company:
            run.done += ticks
            if run.rest:
                rotation.add(run)
        turns += 1
        assert turns <= sum(lengths)
    assert all(run.rest == 0 for run in runs)


def test_inputs_stand_at_their_places_and_padding_is_zero() -> None:
    runs = [a_run(5), a_run(9)]
    runs[1].done = 4
    inputs = gather_inputs(runs, ticks=3, tile=8, input_size=1)
    assert inputs.shape == (3, 8, 1)
    assert inputs[:, 0, 0].tolist() == [0, 1, 2]
    assert inputs[:, 1, 0].tolist() == [4, 5, 6]
    assert not inputs[:, 2:].any()
