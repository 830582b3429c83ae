"""Steps batches: in the loop itself where that is short, else in threads beside it."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from dnc_serve.handler.arrays import Array, Float32
from dnc_serve.handler.engine.batch_scheduler import Batch, Run
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.requests import Chunk
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.model.rows import RowLayout

logger = logging.getLogger(__name__)


class Executor:
    """Owns the threads that step. A step touches the rows of its batch, and nothing else of the engine's."""

    def __init__(self, rows: StateRows, layout: RowLayout, threads: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._rows = rows
        self._layout = layout
        self._pool = ThreadPoolExecutor(threads, "dnc-step")
        # Debug arrays are computed in one piece, of seconds at worst: one chunk's after another's, while others step.
        self._debugging = ThreadPoolExecutor(1, "dnc-debug")
        self.free_threads = threads

    def close(self) -> None:
        """Ends the threads; what they step comes to its end first."""
        self._pool.shutdown()
        self._debugging.shutdown()

    def step(self, batch: Batch) -> None:
        """Steps the batch here and now; its runs have their outputs then, unless it failed."""
        started = time.perf_counter()
        try:
            for run in batch.runs:
                if run.reset_scope:
                    self._reset_first(run)
            sources = [run.source for run in batch.runs]
            targets = [run.row for run in batch.runs]
            inputs = [run.next_inputs(ticks) for run, ticks in zip(batch.runs, batch.ticks, strict=True)]
            outputs, finite = batch.runner.step(self._rows, sources, targets, inputs)
            for run, output, is_finite in zip(batch.runs, outputs, finite, strict=True):
                run.advance(output, is_finite)
        except Exception:  # whatever it was, everybody in the batch is to be answered
            logger.exception("a batch of %d rows could not be stepped", len(batch.runs))
            batch.failed = True
            return
        batch.tick_s = (time.perf_counter() - started) / max(batch.ticks)

    def step_in_thread(self, batch: Batch, then: Callable[[Batch], None]) -> None:
        """Steps the batch in a thread, and calls `then` in the loop."""
        self.free_threads -= 1
        stepped = self._loop.run_in_executor(self._pool, self.step, batch)
        stepped.add_done_callback(partial(self._stepped, batch, then))

    def _stepped(self, batch: Batch, then: Callable[[Batch], None], stepped: "asyncio.Future[None]") -> None:
        self.free_threads += 1
        stepped.result()
        then(batch)

    def _reset_first(self, run: Run) -> None:
        """Where a reset comes before the first timestep, the run's own row is where it begins."""
        self._rows.copy(run.source, run.row)
        self._rows.reset(run.row, run.reset_scope)
        run.source, run.reset_scope = run.row, ""

    def debug(self, chunk: Chunk, before: Float32, runner: ModelRunner) -> "asyncio.Future[dict[str, Array]]":
        """What each timestep of a chunk left in the state, computed once more from the state [S] before it, in a
        thread."""
        state = before.copy()
        if chunk.reset_experience:
            start = self._layout.start_of("experience")
            state[start:] = self._layout.initial[start:]
        return self._loop.run_in_executor(self._debugging, runner.debug, chunk.inputs, state)
