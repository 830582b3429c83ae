import numpy as np

from dnc_serve.handler.engine.host_rows import NO_ROW, HostRows


def test_states_are_kept_apart_and_rows_used_again() -> None:
    rows = HostRows(2, 3)
    state = np.arange(3, dtype=np.float32)
    kept, first = rows.keep(state)
    zeros, second = rows.keep(None)
    state[:] = 9.0
    assert kept.tolist() == [0.0, 1.0, 2.0]
    assert zeros.tolist() == [0.0, 0.0, 0.0]
    rows.give(first)
    assert rows.keep(state)[1] == first
    assert {first, second} == {0, 1}


def test_what_finds_no_row_has_memory_of_its_own() -> None:
    rows = HostRows(1, 3)
    rows.keep(None)
    state = np.ones(3, np.float32)
    kept, row = rows.keep(state)
    state[:] = 9.0
    assert row == NO_ROW
    assert kept.tolist() == [1.0, 1.0, 1.0]
    rows.give(row)
    assert rows.keep(None)[1] == NO_ROW
