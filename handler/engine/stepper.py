"""Steps a company through its ticks: gathered from the slab, stepped in a tile, scattered to working rows."""

import logging
import time

import numpy as np
import torch
from torch import Tensor

from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.engine.company import Run, gather_inputs
from dnc_serve.handler.engine.model_runner import ModelRunner, RowRunner
from dnc_serve.handler.engine.slab import Slab
from dnc_serve.handler.engine.work import Chunk, Replay
from dnc_serve.handler.metrics import Metrics

logger = logging.getLogger(__name__)

# Outputs [ticks, B, O] in host memory, and which states are finite.
Stepped = tuple[Float32, list[bool]]


class Stepper:
    """May be called in several threads at once: it touches the rows of a company, and nothing else of the engine's."""

    def __init__(self, tiles: ModelRunner, slab: Slab, metrics: Metrics) -> None:
        self._tiles = tiles
        self._slab = slab
        self._metrics = metrics
        self._buffers: list[dict[int, Tensor]] = []  # states of a tile by its rows; one step at a time has each

    def tiles_for(self, fingerprint: str) -> ModelRunner:
        """What computed a record with this fingerprint, if it is at hand, else what steps sessions now."""
        return self._tiles.for_fingerprint(fingerprint) if isinstance(self._tiles, RowRunner) else self._tiles

    def step(self, company: list[Run], ticks: int) -> Stepped | None:
        """Gathers, steps, and scatters to the working rows: outputs [ticks, B, O] in host memory, and which states are
        finite; None if that failed."""
        started = time.perf_counter()
        tiles = company[0].tiles
        if isinstance(tiles, RowRunner):
            return self._step_rows(tiles, company, ticks, started)
        tile = tiles.fit(len(company))
        buffers = self._buffers.pop() if self._buffers else {}
        try:
            states = self._in_place(company, tile)
            if states is None:
                if tile not in buffers:
                    buffers[tile] = torch.zeros(tile, tiles.layout.size, device=tiles.device)
                states = buffers[tile]
                self._gather(company, states)
            inputs = torch.from_numpy(gather_inputs(company, ticks, tile, tiles.input_size))
            outputs, states = tiles.run(inputs.to(tiles.device), states)
            if all(run.rest > ticks for run in company):
                finite = [True] * len(company)  # that is asked at the end
                for place, run in enumerate(company):
                    run.kept_in, run.kept_at = states, place
            else:
                self._slab.scatter([run.work_row for run in company], states)
                finite = self._slab.finite(len(company), states)
                for run in company:
                    run.kept_in = None
            result: Float32 = outputs.cpu().numpy()
        except Exception:  # whatever it was, everybody in the company is to be answered
            logger.exception("a tile of %d rows could not be stepped", tile)
            return None
        finally:
            self._buffers.append(buffers)
        self._observe(company, ticks, started)
        return result, finite

    def _step_rows(self, runner: RowRunner, company: list[Run], ticks: int, started: float) -> Stepped | None:
        """The same where rows are read from the slab and written to it."""
        try:
            slab = self._slab.numpy
            sources = [run.source_row for run in company]
            for place, run in enumerate(company):
                if run.done == 0 and run.resets_first:
                    slab[run.work_row] = slab[sources[place]]
                    self.reset_first(run.work, self._slab.states[run.work_row])
                    sources[place] = run.work_row
            inputs = gather_inputs(company, ticks, len(company), runner.input_size)
            result, finite = runner.step(slab, sources, [run.work_row for run in company], inputs)
        except Exception:  # whatever it was, everybody in the company is to be answered
            logger.exception("%d rows could not be stepped", len(company))
            return None
        self._observe(company, ticks, started)
        return result, finite

    def _observe(self, company: list[Run], ticks: int, started: float) -> None:
        self._metrics.tick_duration.observe((time.perf_counter() - started) / ticks)
        self._metrics.batch_size.observe(len(company))

    def _in_place(self, company: list[Run], tile: int) -> Tensor | None:
        """The states [B, S] of a company that comes as it was left; else None."""
        states = company[0].kept_in
        if states is None or len(states) != tile:
            return None
        unchanged = all(run.kept_in is states and run.kept_at == place for place, run in enumerate(company))
        return states if unchanged else None

    def _gather(self, company: list[Run], states: Tensor) -> None:
        for run in company:
            if run.kept_in is not None:
                self._slab.scatter([run.work_row], run.kept_in[run.kept_at :])
                run.kept_in = None
        self._slab.gather([run.source_row for run in company], states)
        for place, run in enumerate(company):
            if run.done == 0:
                self.reset_first(run.work, states[place])

    def reset_first(self, work: Chunk | Replay, state: Tensor) -> None:
        """What came before the first timestep of the work, if it was a reset; changes the state [S]."""
        if isinstance(work, Chunk):
            if work.reset_experience:
                state[self._tiles.layout.experience_offset :] = 0.0
        elif work.reset == "all":
            state.zero_()
        elif work.reset == "experience":
            state[self._tiles.layout.experience_offset :] = 0.0

    def debug(self, run: Run) -> dict[str, Float32]:
        """What each layer's access left at each timestep of a finished run, [T x L, …], computed once more.

        TorchScript computes it, whichever code stepped the run.
        """
        tile = 1 if isinstance(self._tiles, RowRunner) else self._tiles.sizes[0]
        states = torch.zeros(tile, self._tiles.layout.size, device=self._tiles.device)
        assert run.session.row is not None
        self._slab.gather([run.session.row], states)
        self.reset_first(run.work, states[0])
        inputs = torch.zeros(len(run.work.inputs), tile, self._tiles.input_size)
        inputs[:, 0] = torch.from_numpy(np.array(run.work.inputs))
        arrays = self._tiles.debug(inputs.to(self._tiles.device), states)
        return {
            name: array[:, :, 0].reshape(array.shape[0] * array.shape[1], -1).cpu().numpy()
            for name, array in arrays.items()
        }
