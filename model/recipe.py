"""How a task is trained: the model's sizes, its starting point, and the way down."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

OPTIMIZERS = ("adam", "rmsprop", "sgd", "adamax", "adagrad", "adadelta")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is added to a fresh model's parameters, so that it begins as a memory that is used, not one that is avoided.

    `biases` names parts of the interface vector (see `interface_sections`); `content_mode` is the content part of the
    read modes. `forget_bias` goes to the forget gates of LSTM controllers, on top of the model's own; `input_scale`
    multiplies the controller's weights of the inputs, not those of its read vectors.
    """

    biases: Mapping[str, float] = field(
        default_factory=lambda: {"allocation_gates": 2.0, "write_gates": 1.0, "free_gates": -2.0}
    )
    forget_bias: float = 0.0
    input_scale: float = 1.0


PLAIN_START = Start(biases={})
"""A fresh model as it is."""

LOOKUP_START = Start(
    biases={
        "allocation_gates": 2.0,
        "write_gates": 1.0,
        "free_gates": -2.0,
        "read_strengths": 10.0,
        "content_mode": 2.0,
    },
    input_scale=2.0,
)
"""A memory that keeps what it is told and reads by content: for questions about what was told before."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides a training run apart from the task's own options; checked when made.

    `model` holds arguments of `DNC` other than input and output size. The learning rate falls exponentially from `lr`
    to `final_lr`. `carry` is the share of batches that start from the controller state and read vectors with which the
    previous batch ended, memory zeroed, as a session does after a reset of its experience; `broken_off` is the share of
    these in which that previous batch is left at a random timestep. With a curriculum, episodes grow by
    `curriculum_increment` every `curriculum_every` iterations.

    Raises ValueError that names the field, its value and the allowed range.
    """

    model: Mapping[str, Any]
    start: Start = Start()
    iterations: int = 1000
    batch_size: int = 16
    optimizer: str = "adam"
    lr: float = 1e-3
    final_lr: float | None = None  # None: lr, unchanged
    max_grad_norm: float = 10.0
    carry: float = 0.0
    broken_off: float = 0.5
    curriculum_increment: int = 0
    curriculum_every: int = 1000
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "curriculum_every"):
            _expect(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "max_grad_norm") + (("final_lr",) if self.final_lr is not None else ()):
            _expect(name, getattr(self, name), getattr(self, name) > 0, "more than 0")
        for name in ("carry", "broken_off"):
            _expect(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "a share in [0, 1]")
        _expect("curriculum_increment", self.curriculum_increment, self.curriculum_increment >= 0, "at least 0")
        _expect("seed", self.seed, 0 <= self.seed < 2**63, "in [0, 2**63)")
        _expect("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")

    def learning_rate(self, iteration: int) -> float:
        """Of one iteration, the first being 0."""
        if self.final_lr is None:
            return self.lr
        return self.lr * math.exp(math.log(self.final_lr / self.lr) * iteration / self.iterations)

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_dict` described."""
        return cls(**{**values, "start": Start(**values["start"])})


def _expect(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; expected {allowed}")
