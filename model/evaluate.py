"""What a trained model gets wrong, in fresh sessions and in used ones: the figures of the model cards."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dnc_serve.model.dnc import DNC
from dnc_serve.model.state import DNCState
from dnc_serve.model.tasks.task import Task, random_int

FRESH = "fresh"
EXPERIENCE = "after a reset of the experience"
BROKEN_OFF = "after one in the midst of an episode"
ALL = "after a reset of all"
STARTS = (FRESH, EXPERIENCE, BROKEN_OFF, ALL)
ROWS = 100


@dataclass(frozen=True)
class Figure:
    """One exam, begun in one way."""

    exam: str
    start: str
    episodes: int
    wrong_episodes: int  # with anything wrong in them
    answers: int
    wrong_answers: int
    units: int
    wrong_units: int
    unit: str  # what is counted: bits, digits, answers
    right_by_answer: tuple[
        float, ...
    ]  # of the episodes that have a first, second, … answer, the share in which it is right

    def __str__(self) -> str:
        shares = " ".join(f"{100 * share:.1f}" for share in self.right_by_answer[:8])
        more = " …" if len(self.right_by_answer) > 8 else ""
        return (
            f"{self.exam}, {self.start}: {self.wrong_episodes} of {self.episodes} episodes wrong, "
            f"{self.wrong_answers} of {self.answers} answers, {self.wrong_units} of {self.units} {self.unit}; "
            f"right by answer {shares}{more} %"
        )


def examined(task: Task, model: DNC, episodes: int) -> Iterator[object]:
    """What `dnc train --evaluate` prints of a model, line by line."""
    own = task.examine(model, episodes)
    return evaluate(task, model, episodes) if own is None else own


@torch.no_grad()
def evaluate(
    task: Task, model: DNC, episodes: int = 1000, seed: int = 20161012, starts: Sequence[str] = STARTS
) -> Iterator[Figure]:
    """Each exam of the task from each start, on fresh draws; `episodes` is rounded up to full batches of 100.

    A used session has been through one to three episodes as trained, each followed by a reset of the experience.
    """
    beginnings: dict[str, Callable[[torch.Generator], DNCState]] = {
        FRESH: lambda _: model.initial_state(ROWS),
        EXPERIENCE: lambda generator: _used(task, model, generator).reset_experience(),
        BROKEN_OFF: lambda generator: _used(task, model, generator, broken_off=True).reset_experience(),
        # As the server does it: whatever the session was, it begins again with zeros.
        ALL: lambda generator: model.initial_state(_used(task, model, generator).batch_size),
    }
    was_training = model.training
    model.eval()
    try:
        for exam, variant in task.exams().items():
            for start in starts:
                generator = torch.Generator().manual_seed(seed)
                yield _figure(exam, start, variant, model, beginnings[start], generator, episodes)
    finally:
        model.train(was_training)


def _figure(
    exam: str,
    start: str,
    task: Task,
    model: DNC,
    begin: Callable[[torch.Generator], DNCState],
    generator: torch.Generator,
    episodes: int,
) -> Figure:
    wrong_answers: list[Tensor] = []  # each [answers, ROWS]
    given_answers: list[Tensor] = []  # the same: whether the episode has so many answers at all
    wrong_units = units = answers = 0
    for _ in range(-(-episodes // ROWS)):
        state = begin(generator)
        batch = task.draw(ROWS, generator)
        outputs, _ = model.unroll(batch.inputs, state)
        wrong = task.wrong(outputs, batch)  # [T, B]
        wrong_units += int(wrong.sum())
        units += task.units(batch)
        answers += int(batch.due.sum())
        # Rows answer at different timesteps in some tasks: a row's answers in their order.
        order = (batch.due == 0).to(torch.uint8).argsort(dim=0, stable=True)
        longest = int(batch.due.sum(0).max())
        wrong_answers.append((wrong.gather(0, order) > 0)[:longest])
        given_answers.append((batch.due.gather(0, order) > 0)[:longest])
    most = max(len(batch_answers) for batch_answers in wrong_answers)
    table = torch.cat([_padded(batch_answers, most) for batch_answers in wrong_answers], 1)
    given = torch.cat([_padded(batch_answers, most) for batch_answers in given_answers], 1)
    return Figure(
        exam=exam,
        start=start,
        episodes=table.size(1),
        wrong_episodes=int(table.any(0).sum()),
        answers=answers,
        wrong_answers=int(table.sum()),
        units=units,
        wrong_units=wrong_units,
        unit=task.unit,
        right_by_answer=tuple((1 - table.sum(1) / given.sum(1)).tolist()),
    )


def _padded(answers: Tensor, length: int) -> Tensor:
    """[answers, rows] to [length, rows], False where there is no answer."""
    return torch.cat((answers, answers.new_zeros(length - len(answers), answers.size(1))))


def _used(task: Task, model: DNC, generator: torch.Generator, *, broken_off: bool = False) -> DNCState:
    """The state of sessions that have been through some episodes."""
    state = model.initial_state(ROWS)
    for _ in range(random_int(1, 3, generator)):
        inputs = task.draw(ROWS, generator).inputs
        if broken_off:
            inputs = inputs[: random_int(1, len(inputs), generator)]
        _, state = model.unroll(inputs, state.reset_experience())
    return state
