"""What sessions are, without a server: a state, and the model stepped in this process, with nothing in between."""

from dataclasses import dataclass

import numpy as np

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.state_rows import StateRows
from tests.handler.harness import INPUT_SIZE


def random_inputs(chance: np.random.Generator, timesteps: int) -> Float32:
    """Bits as ±1, [T, I]."""
    return chance.choice(np.array([-1, 1], np.float32), (timesteps, INPUT_SIZE))


class Truth:
    """The states [B, S] of some sessions that nothing ever happens to."""

    def __init__(self, runner: ModelRunner, sessions: int = 1) -> None:
        self._runner = runner
        self._rows = StateRows(sessions, runner.layout, runner.device)

    @property
    def states(self) -> Float32:
        return self._rows.states.numpy()

    def step(self, inputs: Float32) -> Float32:
        """Outputs [T, B, O] for inputs [T, B, I]."""
        timesteps, sessions, _ = inputs.shape
        outputs = np.empty((timesteps, sessions, self._runner.outputs.size), np.float32)
        for first in range(0, sessions, self._runner.max_rows):
            own = range(first, min(first + self._runner.max_rows, sessions))
            chunks = [np.ascontiguousarray(inputs[:, row]) for row in own]
            for row, given in zip(own, self._runner.step(self._rows, own, own, chunks)[0], strict=True):
                outputs[:, row] = given
        return outputs

    def reset(self, session: int = 0, scope: str = "experience") -> None:
        """What the two kinds of reset do."""
        self._rows.reset(session, scope)


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
