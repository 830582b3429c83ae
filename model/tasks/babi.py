"""bAbI, all its tasks at once as in the Nature paper: stories word by word, and questions answered by a word each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from dnc_serve.model.recipe import LOOKUP_START, Recipe
from dnc_serve.model.tasks.babi_files import Babi, Story, read_babi
from dnc_serve.model.tasks.task import Batch, Task, option

if TYPE_CHECKING:
    from dnc_serve.model.dnc import DNC

FAILED = 0.05
"""A task is failed, as the papers count it, if more than so much of its questions is answered wrong."""
BAND = 32  # stories of a batch differ by less than so many words: less of it is filling
ROWS = 100


class Band(NamedTuple):
    """Stories of much the same length, as numbers of words."""

    stories: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]  # words and answers, [T] each
    share: float  # of all answers


@dataclass(frozen=True, kw_only=True)
class BabiTask(Task):
    """A word a timestep, one-hot; an answer is due where the word is `-`, once for each of its words, as logits.

    Data are in the published format: a folder, or a tar of any compression. What is said elsewhere costs nothing.
    """

    name = "babi"
    unit = "words"
    recipe = Recipe(
        model={"hidden_size": 128, "num_hidden_layers": 1, "nr_cells": 48, "cell_size": 32, "read_heads": 2},
        start=replace(LOOKUP_START, forget_bias=0.0),
        iterations=20_000,
        batch_size=16,
        lr=1e-3,
        final_lr=1e-4,
    )

    data: str = option("", "the folder or tar with the stories")
    part: str = option("en-10k", "the folder that is meant where the data hold a task more than once")
    most_words: int = option(160, "words of the longest story that is trained on; examined are all")
    vocabulary: tuple[str, ...] = option((), "the words, in the order of the channels; those of the data")

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))  # JSON knows lists only
        if self.data and not self.vocabulary:
            object.__setattr__(self, "vocabulary", self.stories.vocabulary)

    def moved(self, source: Path) -> Self:
        return replace(self, data=str(source.resolve()))

    @property
    def stories(self) -> Babi:
        """All that the data hold. Raises ValueError without data, or for what isn't bAbI."""
        if not self.data:
            raise ValueError("task babi has no data; expected --data with the folder or tar of bAbI")
        return read_babi(self.data, self.part)

    @property
    def input_size(self) -> int:
        if not self.vocabulary:
            raise ValueError("task babi has no data; expected --data with the folder or tar of bAbI")
        return len(self.vocabulary)

    @property
    def output_size(self) -> int:
        return self.input_size

    @cached_property
    def bands(self) -> list[Band]:
        """What is trained on, by length. Raises ValueError if it has words that the vocabulary lacks, or no story."""
        numbers: dict[int, list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]] = {}
        for story in self.stories.train:
            if len(story.words) <= self.most_words:
                numbers.setdefault(-(-len(story.words) // BAND), []).append(self._numbers(story))
        if not numbers:
            raise ValueError(f"most_words is {self.most_words}; no story is as short as that")
        answers = {band: sum(int((due >= 0).sum()) for _, due in stories) for band, stories in numbers.items()}
        return [Band(numbers[band], answers[band] / sum(answers.values())) for band in sorted(numbers)]

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        band = self.bands[
            int(torch.multinomial(torch.tensor([band.share for band in self.bands]), 1, generator=generator))
        ]
        chosen = torch.randint(0, len(band.stories), (batch_size,), generator=generator)
        return self.episode([band.stories[place] for place in chosen.tolist()])

    def episode(self, stories: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]) -> Batch:
        """The whole episode for words and answers by number, [T] each; shorter stories are followed by zeros."""
        words, answers = (
            torch.nn.utils.rnn.pad_sequence([torch.from_numpy(story[part]) for story in stories], padding_value=-1)
            for part in (0, 1)
        )
        size = self.input_size + 1
        inputs, targets = (one_hot(numbers + 1, size)[..., 1:].float() for numbers in (words, answers))
        return Batch(inputs, targets, (answers >= 0).float())

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of the words that are due, in nats."""
        due = batch.due > 0
        return cross_entropy(outputs[due], batch.targets[due])

    def wrong(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs.argmax(2) != batch.targets.argmax(2)) * batch.due

    def units(self, batch: Batch) -> int:
        return int(batch.due.sum())

    def examine(self, model: "DNC", episodes: int) -> Iterator[str]:
        """The error of each task on at most so many of its test stories, then the mean of them and how many failed."""
        errors: dict[int, float] = {}
        for task in sorted({story.task for story in self.stories.test}):
            stories = [story for story in self.stories.test if story.task == task][:episodes]
            wrong, questions = self.questions_wrong(model, stories)
            errors[task] = wrong / questions
            yield f"task {task}: {100 * errors[task]:.1f} % wrong, {wrong} of {questions} questions"
        if not errors:
            raise ValueError(f"{self.data} has no test; expected qaN_test.txt beside the training")
        failed = sum(error > FAILED for error in errors.values())
        mean = 100 * sum(errors.values()) / len(errors)
        yield f"mean error {mean:.1f} %, {failed} of {len(errors)} tasks failed (more than {100 * FAILED:.0f} % wrong)"

    @torch.no_grad()
    def questions_wrong(self, model: "DNC", stories: Sequence[Story]) -> tuple[int, int]:
        """Of how many questions any word was answered wrong, and how many there were; all from fresh sessions."""
        was_training = model.training
        model.eval()
        wrong = questions = 0
        ordered = sorted(stories, key=lambda story: len(story.words))
        for first in range(0, len(ordered), ROWS):
            some = ordered[first : first + ROWS]
            batch = self.episode([self._numbers(story) for story in some])
            outputs, _ = model.unroll(batch.inputs, model.initial_state(len(some)))
            due = batch.due > 0
            begins = due & ~torch.cat((torch.zeros_like(due[:1]), due[:-1]))  # an answer's words follow one another
            question = begins.cumsum(0)
            missed = self.wrong(outputs, batch) > 0
            wrong += len({*zip(*(part.tolist() for part in _places(question, missed)), strict=True)})
            questions += int(begins.sum())
        model.train(was_training)
        return wrong, questions

    def _numbers(self, story: Story) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        try:
            return story.numbers(self._places)
        except KeyError as exc:
            raise ValueError(f"{self.data} has the word {exc}, which the vocabulary lacks") from exc

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.vocabulary)}


def _places(question: Tensor, missed: Tensor) -> tuple[Tensor, Tensor]:
    """The row and the question's number, [n] each, of every word that was missed."""
    timesteps, rows = missed.nonzero(as_tuple=True)
    return rows, question[timesteps, rows]
