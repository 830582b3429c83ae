"""What a task is: data to draw, a loss to lower, and a count of what is still wrong."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dnc_serve.model.recipe import Recipe

if TYPE_CHECKING:
    from dnc_serve.model.dnc import DNC

# Ours, by the names of their modules.
TASKS = {
    "copy": "Copy",
    "repeat_copy": "RepeatCopy",
    "recall": "Recall",
    "graph": "Graph",
    "adding": "Adding",
    "argmax": "Argmax",
    "priority_sort": "PrioritySort",
    "traversal": "Traversal",
    "shortest_path": "ShortestPath",
    "family_tree": "FamilyTree",
    "babi": "BabiTask",
}


class Batch(NamedTuple):
    """Sequences of one length, time first as `DNC.unroll` takes them."""

    inputs: Tensor  # [T, B, I]
    targets: Tensor  # [T, B, O]
    due: Tensor  # [T, B]; 1 where an answer is expected, else 0


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A kind of episode that a DNC learns; the fields of a subclass say how hard its episodes are.

    Draws come from the generator alone, so that its state is all that a resumed training needs of the data.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "bits"
    """What `wrong` counts."""
    recipe: ClassVar[Recipe]

    @property
    @abstractmethod
    def input_size(self) -> int:
        """I."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """O."""

    @abstractmethod
    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Fresh random episodes, all of one length."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of the bits that are due, in nats; `outputs` [T, B, O] are logits."""
        losses = binary_cross_entropy_with_logits(outputs, batch.targets, reduction="none").sum(2)
        return (losses * batch.due).sum() / (batch.due.sum() * outputs.size(2))

    def wrong(self, outputs: Tensor, batch: Batch) -> Tensor:
        """How many units are wrong in each answer, [T, B]; 0 where none is due."""
        return ((outputs > 0) != (batch.targets > 0.5)).sum(2) * batch.due

    def units(self, batch: Batch) -> int:
        """How many units could be wrong in a batch."""
        return int(batch.due.sum()) * self.output_size

    def lengthened(self, by: int) -> Self:
        """The same task with episodes up to `by` longer, for a curriculum. Raises ValueError if it has none."""
        raise ValueError(f"task {self.name} can't be lengthened; expected a recipe with a curriculum_increment of 0")

    def exams(self) -> "dict[str, Task]":
        """The variants of this task on which a model's card reports, by name."""
        return {"as trained": self}

    def examine(self, model: "DNC", episodes: int) -> Iterator[object] | None:
        """What `dnc train --evaluate` prints of a model, line by line; None: `evaluate` its exams."""
        return None

    def servable(self, model: "DNC") -> "DNC":
        """The model that is saved and served, of the one that is trained: itself, unless it was given scaled data."""
        return model

    def moved(self, source: Path) -> Self:
        """The same task, with its data in another place. Raises ValueError if it draws all that it needs."""
        raise ValueError(f"task {self.name} takes no data; expected no --data")

    def card(self, model: "DNC", command: str) -> str | None:
        """What `CARD.md` of a finished run says of the servable model and how it was made; None: nothing is written."""
        return None

    @property
    def argument(self) -> str:
        """What `dnc train` is given to train on it, or to go on."""
        return address_of(type(self))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """The task with some fields changed. Raises ValueError for one that doesn't exist, or with the wrong kind."""
        known = {option.name: option for option in fields(cls)}
        unknown = sorted(set(options) - set(known))
        if unknown:
            has = f"expected some of {', '.join(known)}" if known else "it has none"
            raise ValueError(f"task {cls.name} has no option {', '.join(unknown)}; {has}")
        for name, value in options.items():
            default = known[name].default
            if default not in (MISSING, None) and isinstance(value, Real) != isinstance(default, Real):
                raise ValueError(f"task option {name} is {value!r}; expected a value as its default, {default!r}")
        return cls(**options)


def address_of(task: type[Task]) -> str:
    """The name by which `task_class` finds a task again."""
    if task.__module__ == f"dnc_serve.model.tasks.{task.name}" and TASKS.get(task.name) == task.__name__:
        return task.name
    return f"{task.__module__}:{task.__qualname__}"


def option(default: Any, help: str) -> Any:
    """A field of a task, with the line that `--help` shows for it."""
    return field(default=default, metadata={"help": help})


def check_range(name: str, lowest: int, highest: int, at_least: int = 1, at_most: int | None = None) -> None:
    """Raises ValueError unless at_least ≤ lowest ≤ highest ≤ at_most."""
    if lowest < at_least or highest < lowest or (at_most is not None and highest > at_most):
        limit = "" if at_most is None else f" and at most {at_most}"
        raise ValueError(f"{name} is {lowest} to {highest}; expected a rising range of at least {at_least}{limit}")


def random_int(lowest: int, highest: int, generator: torch.Generator) -> int:
    """A whole number from `lowest` to `highest`, both included."""
    return int(torch.randint(lowest, highest + 1, (), generator=generator))


def random_share(generator: torch.Generator) -> float:
    """A number in [0, 1)."""
    return float(torch.rand((), generator=generator))


def random_bits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Fair bits, 0.0 or 1.0."""
    return torch.randint(0, 2, shape, generator=generator).float()
