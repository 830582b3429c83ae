"""What sessions are, without a server: a state, and the model stepped in this process, with nothing in between."""

from dataclasses import dataclass

import numpy as np
import torch

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.engine.tile_runner import TileRunner

INPUT_SIZE, OUTPUT_SIZE = 5, 4


def random_inputs(chance: np.random.Generator, timesteps: int) -> Float32:
    """Bits as ±1, [T, I]."""
    return chance.choice(np.array([-1, 1], np.float32), (timesteps, INPUT_SIZE))


class Truth:
    """The states [B, S] of some sessions that nothing ever happens to."""

    def __init__(self, tiles: TileRunner, sessions: int = 1) -> None:
        self._tiles = tiles
        self.states = np.zeros((sessions, tiles.layout.size), np.float32)

    def step(self, inputs: Float32) -> Float32:
        """Outputs [T, B, O] for inputs [T, B, I]."""
        timesteps, sessions, _ = inputs.shape
        outputs = np.empty((timesteps, sessions, self._tiles.output_size), np.float32)
        rows = self._tiles.max_rows
        for first in range(0, sessions, rows):
            own = slice(first, min(first + rows, sessions))
            count = own.stop - own.start
            tiled = torch.zeros(timesteps, rows, inputs.shape[2])
            tiled[:, :count] = torch.from_numpy(np.ascontiguousarray(inputs[:, own]))
            states = torch.zeros(rows, self.states.shape[1])
            states[:count] = torch.from_numpy(self.states[own])
            given, states = self._tiles.run(tiled, states)
            outputs[:, own] = given[:, :count].numpy()
            self.states[own] = states[:count].numpy()
        return outputs

    def reset(self, session: int = 0, scope: str = "experience") -> None:
        """What the two kinds of reset do."""
        self.states[session, 0 if scope == "all" else self._tiles.layout.experience_offset :] = 0.0


@dataclass(slots=True)
class Tally:
    """How served sessions differ from uninterrupted ones, in timesteps."""

    lost: int = 0
    doubled: int = 0
    differing: int = 0
    timesteps: int = 0

    def __str__(self) -> str:
        return f"lost {self.lost}, doubled {self.doubled}, differing {self.differing} of {self.timesteps} timesteps"

    @property
    def clean(self) -> bool:
        return self.timesteps > 0 and (self.lost, self.doubled, self.differing) == (0, 0, 0)
