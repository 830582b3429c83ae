"""A plain model of what a session is: a state, and where it stood at each position."""

from dataclasses import dataclass, field

import numpy as np

from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.engine.model_runner import ModelRunner
from tests.chaos.truth import Truth

Moment = tuple[int, bytes]  # experience and state


@dataclass(slots=True)
class ModelSession:
    """One session, in memory and by itself."""

    truth: Truth
    incarnation: int
    position: int = 0
    experience: int = 0
    # As it was when it last stood at each position since it began.
    past: dict[int, Moment] = field(default_factory=dict)

    @classmethod
    def begun(
        cls, runner: ModelRunner, incarnation: int, position: int = 0, moment: Moment | None = None
    ) -> "ModelSession":
        truth = Truth(runner)
        experience = 0
        if moment is not None:
            experience, state = moment
            truth.states[0] = np.frombuffer(state, np.float32)
        session = cls(truth, incarnation, position, experience)
        session._remember()
        return session

    @property
    def moment(self) -> Moment:
        return self.experience, self.truth.states.tobytes()

    def step(self, inputs: Float32, reset_experience: bool) -> Float32:
        """Outputs [T, O]."""
        if reset_experience:
            self.truth.reset()
            self.experience += 1
        outputs = []
        for row in inputs:
            outputs.append(self.truth.step(row[None, None])[:, 0])
            self.position += 1
            self._remember()
        return np.concatenate(outputs)

    def reset(self, scope: str) -> None:
        self.truth.reset(scope=scope)
        self.experience += 1
        self._remember()

    def _remember(self) -> None:
        self.past[self.position] = self.moment
