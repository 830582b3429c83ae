"""The artifact by itself: what a server can't be faster than. Run in a process of its own, see `aside`."""

import statistics
import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnc_serve.handler.tiles import Tiles

TURNS = 3


def tick_us(artifact: str, device: str, seconds: float) -> dict[int, float]:
    """Microseconds of one tick by the rows of the tile, a call a tick."""
    tiles = _tiles(artifact, device)
    return {rows: tile_seconds(tiles, rows, 1, seconds / len(tiles.sizes)) * 1e6 for rows in tiles.sizes}


def timesteps_per_s(artifact: str, device: str, ticks: int, seconds: float) -> float:
    """Of the largest tile, unrolled by so many ticks a call."""
    tiles = _tiles(artifact, device)
    return tiles.largest * ticks / tile_seconds(tiles, tiles.largest, ticks, seconds)


def tile_seconds(tiles: "Tiles", rows: int, ticks: int, seconds: float) -> float:
    """Seconds of one call, states carried on: the median of a few turns."""
    import torch

    inputs = torch.randint(0, 2, (ticks, rows, tiles.input_size), device=tiles.device).float()
    states = torch.zeros(rows, tiles.layout.size, device=tiles.device)
    turns = []
    for _ in range(TURNS):
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds / TURNS or not calls:
            outputs, states = tiles.run(inputs, states)
            calls += 1
            outputs.cpu()
        turns.append(elapsed / calls)
    return statistics.median(turns)


@cache
def _tiles(artifact: str, device: str) -> "Tiles":
    from dnc_serve.handler.tiles import Tiles
    from dnc_serve.model.export import load_artifact

    return Tiles(load_artifact(artifact, device), device)
