"""Who is stepped when: the scheduler is pure, and so is asked about any traffic at all."""

from collections import Counter
from dataclasses import dataclass
from math import ceil

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dnc_serve.handler.engine.batch_scheduler import Batch, BatchScheduler, Run
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.replies import Replies
from dnc_serve.handler.engine.requests import Chunk
from dnc_serve.handler.engine.session import Session

SESSION_ROW, RUN_ROW = 7, 8


@dataclass(eq=False)
class TimedRunner:
    """As much of a `ModelRunner` as a schedule depends on."""

    max_rows: int
    tick_s: float
    row_s: float

    def seconds(self, rows: int) -> float:
        return self.tick_s + rows * self.row_s


def a_run(timesteps: int, runner: TimedRunner) -> Run:
    """A chunk whose timesteps are numbered."""
    session = Session("s", 1, "", "", 0.0, Replies(1, 1))
    chunk = Chunk(np.arange(timesteps, dtype=np.float32).reshape(-1, 1), lambda result, error: None)
    return Run(session, chunk, SESSION_ROW, RUN_ROW, runner, timesteps)  # type: ignore[arg-type]


def echo(batch: Batch) -> None:
    """Steps a model whose outputs are its inputs."""
    for run, ticks in zip(batch.runs, batch.ticks, strict=True):
        assert run.source == (SESSION_ROW if run.outputs is None else RUN_ROW)
        run.advance(run.next_inputs(ticks), True)


def most_batches(ahead: list[Run], run: Run, max_rows: int | None) -> int:
    """In which of the next batches a run is that stands behind these: half of each is for those in front."""
    counts = Counter(one.runner for one in [*ahead, run])
    return sum(ceil(count / ceil(rows_of(runner, max_rows) / 2)) for runner, count in counts.items())


def rows_of(runner: ModelRunner, max_rows: int | None) -> int:
    return runner.max_rows if max_rows is None else min(runner.max_rows, max_rows)


RUNNERS = st.builds(TimedRunner, st.integers(1, 9), st.floats(1e-5, 1e-2), st.floats(0, 1e-3))


@given(
    runners=st.tuples(RUNNERS, RUNNERS),
    arrivals=st.lists(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 1)), max_size=12), min_size=1, max_size=12),
    max_rows=st.none() | st.integers(1, 12),
    slice_s=st.floats(1e-4, 2e-2),
)
def test_whatever_comes_each_gets_its_ticks_in_order_and_nobody_starves(
    runners: tuple[TimedRunner, TimedRunner],
    arrivals: list[list[tuple[int, int]]],
    max_rows: int | None,
    slice_s: float,
) -> None:
    scheduler, waiting, runs = BatchScheduler(slice_s), list[Run](), list[Run]()
    due: dict[Run, int] = {}  # by which batch it has to be stepped
    number = 0

    def add(run: Run) -> None:
        due[run] = number + most_batches(waiting, run, max_rows)
        waiting.append(run)
        scheduler.add(run)

    while arrivals or waiting:
        for timesteps, which in arrivals.pop(0) if arrivals else []:
            runs.append(a_run(timesteps, runners[which]))
            add(runs[-1])
        batch = scheduler.next_batch(max_rows)
        if batch is None:
            assert not waiting
            continue
        number += 1
        # The longest waiting is in it, with others of its runner, as many as there are or as it holds.
        runner, chosen = batch.runner, batch.runs
        alike = [run for run in waiting if run.runner is runner]
        assert chosen[0] is waiting[0]
        assert len({*map(id, chosen)}) == len(chosen) == min(len(alike), rows_of(runner, max_rows))
        assert all(run.runner is runner for run in chosen)
        # Nobody is passed over for one that has more left, but for those that waited longer.
        left = [run for run in alike if run not in chosen]
        longest_waiting = alike[: ceil(len(chosen) / 2)]
        assert all(run in chosen for run in longest_waiting)
        others = [run.rest for run in chosen if run not in longest_waiting]
        assert max(others, default=0) <= min((run.rest for run in left), default=40)
        # As many ticks as the slice has time for, and one at least.
        most = max(1, int(slice_s / runner.seconds(len(chosen))))
        assert batch.ticks == [min(run.rest, most) for run in chosen]
        assert all(due[run] >= number for run in waiting)
        waiting = [run for run in waiting if run not in chosen]
        assert len(scheduler.runs) == len(waiting)
        echo(batch)
        for run in chosen:
            if run.rest:
                add(run)
    assert scheduler.next_batch() is None
    for run in runs:
        assert run.outputs is not None
        assert run.outputs.tolist() == run.request.inputs.tolist()


def test_a_short_chunk_is_through_in_the_next_batch_however_many_long_ones_wait() -> None:
    runner = TimedRunner(max_rows=4, tick_s=0.001, row_s=0.0)
    scheduler = BatchScheduler(slice_s=0.0101)
    for _ in range(50):
        scheduler.add(a_run(1000, runner))
    short = a_run(3, runner)
    scheduler.add(short)
    batch = scheduler.next_batch()
    assert batch is not None
    assert dict(zip(batch.runs, batch.ticks, strict=True))[short] == 3
    assert sorted(batch.ticks) == [3, 10, 10, 10]


def test_an_output_that_was_not_finite_is_remembered_through_the_ticks_that_follow() -> None:
    run = a_run(3, TimedRunner(max_rows=1, tick_s=1.0, row_s=0.0))
    for finite in (True, False, True):
        run.advance(run.next_inputs(1), finite)
    assert not run.rest and not run.finite
