"""Steps a company through its ticks: gathered from the slab, stepped in a tile, scattered to working rows."""

import logging
import time

import numpy as np
import torch
from torch import Tensor

from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.engine.company import Run, gather_inputs
from dnc_serve.handler.engine.slab import Slab
from dnc_serve.handler.engine.tiles import Tiles
from dnc_serve.handler.engine.work import Chunk, Replay
from dnc_serve.handler.metrics import Metrics

logger = logging.getLogger(__name__)

# Outputs [ticks, B, O] in host memory, and which states are finite.
Stepped = tuple[Float32, list[bool]]


class Stepper:
    """May be called in several threads at once: it touches the rows of a company, and nothing else of the engine's."""

    def __init__(self, tiles: Tiles, slab: Slab, metrics: Metrics) -> None:
        self._tiles = tiles
        self._slab = slab
        self._metrics = metrics
        at_hand = (tiles, *tiles.others)
        self._by_fingerprint = {each.fingerprint: each for each in at_hand}
        self._buffers: list[dict[int, Tensor]] = []  # states of a tile by its rows; one step at a time has each

    def tiles_for(self, fingerprint: str) -> Tiles:
        """What computed a record with this fingerprint, if it is at hand, else what steps sessions now."""
        return self._by_fingerprint.get(fingerprint, self._tiles)

    def step(self, company: list[Run], ticks: int) -> Stepped | None:
        """Gathers, steps, and scatters to the working rows: outputs [ticks, B, O] in host memory, and which states are
        finite; None if that failed."""
        started = time.perf_counter()
        tiles = company[0].tiles
        tile = tiles.fit(len(company))
        try:
            buffers = self._buffers.pop()
        except IndexError:  # another thread may have taken the last one just now
            buffers = {}
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
        self._metrics.tick_duration.observe((time.perf_counter() - started) / ticks)
        self._metrics.batch_size.observe(len(company))
        return result, finite

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

    def debug(self, chunk: Chunk, before: Float32) -> dict[str, Float32]:
        """What each layer's access left at each timestep of a chunk [T x L, …], computed once more from the state [S]
        before it.

        TorchScript computes it, whichever code stepped the chunk.
        """
        tile = self._tiles.sizes[0]
        states = torch.zeros(tile, self._tiles.layout.size)
        states[0] = torch.from_numpy(before)
        self.reset_first(chunk, states[0])
        inputs = torch.zeros(len(chunk.inputs), tile, self._tiles.input_size)
        inputs[:, 0] = torch.from_numpy(np.array(chunk.inputs))
        arrays = self._tiles.debug(inputs.to(self._tiles.device), states.to(self._tiles.device))
        return {
            name: array[:, :, 0].reshape(array.shape[0] * array.shape[1], -1).cpu().numpy()
            for name, array in arrays.items()
        }
