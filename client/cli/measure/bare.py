"""The artifact by itself: what a server can't be faster than. Run in a process of its own, see `aside`."""

import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

TURNS = 3


def tick_us(artifact: str, device: str, compiled: str, seconds: float) -> dict[int, float]:
    """Microseconds of one tick by the rows of the tile, a call a tick."""
    tiles = _tiles(artifact, device, compiled)
    return {rows: tile_seconds(tiles, rows, 1, seconds / len(tiles.sizes)) * 1e6 for rows in tiles.sizes}


def timesteps_per_s(artifact: str, device: str, compiled: str, ticks: int, seconds: float) -> float:
    """Of the largest tile, unrolled by so many ticks a call."""
    tiles = _tiles(artifact, device, compiled)
    return tiles.largest * ticks / tile_seconds(tiles, tiles.largest, ticks, seconds)


def tile_seconds(tiles: "Tiles", rows: int, ticks: int, seconds: float) -> float:
    """Seconds of one call, states carried on."""
    import torch

    inputs = torch.randint(0, 2, (ticks, rows, tiles.input_size), device=tiles.device).float()
    states = torch.zeros(rows, tiles.layout.size, device=tiles.device)

    def call() -> None:
        nonlocal states
        outputs, states = tiles.run(inputs, states)
        outputs.cpu()

    return seconds_of(call, seconds)


def seconds_of(call: Callable[[], None], seconds: float) -> float:
    """Seconds of one call: the median of a few turns."""
    turns = []
    for _ in range(TURNS):
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds / TURNS or not calls:
            call()
            calls += 1
        turns.append(elapsed / calls)
    return statistics.median(turns)


@cache
def _tiles(artifact: str, device: str, compiled: str) -> "Tiles":
    """As a server chooses them, with the cache of compiled artifacts in the folder `compiled`."""
    from dnc_serve.handler.engine.model_runner import choose_tiles
    from dnc_serve.model.export import load_artifact

    return choose_tiles(load_artifact(artifact, device), device, Path(compiled))
