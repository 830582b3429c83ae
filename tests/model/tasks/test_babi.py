"""bAbI: the published format, words as they come and go, and questions counted as the papers count them."""

import json
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from dnc_serve.model.runs import Plan
from dnc_serve.model.start import new_model
from dnc_serve.model.tasks.babi import BabiTask
from dnc_serve.model.tasks.babi_files import read_babi, read_stories
from dnc_serve.model.train import Training, wrong_share
from tests.model.tasks.published import PATHS, WHERE, write_babi

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "nr_cells": 8, "cell_size": 16, "read_heads": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_babi(tmp_path / "data")
    return tmp_path / "data"


def said(task: BabiTask, row: torch.Tensor) -> list[str]:
    """The words in one row of inputs or targets [T, words]; empty where there is none."""
    return [task.vocabulary[int(word.argmax())] if word.any() else "" for word in row]


def test_stories_and_questions_are_read_word_for_word() -> None:
    first, second = read_stories(1, "here", WHERE)
    assert " ".join(first.words) == (
        "ada went to the attic . ben is in the cellar . where is ada ? - ada went to the cellar . where is ada ? -"
    )
    assert [word for word in first.answers if word] == ["attic", "cellar"]
    assert [place for place, word in enumerate(first.answers) if word] == [16, 27]
    assert len(second.words) == 11
    (path,) = read_stories(19, "here", PATHS)
    assert path.words[-3:] == ("?", "-", "-") and path.answers[-3:] == ("", "n", "n")
    with pytest.raises(ValueError, match=r"qa1_train\.txt:2: 'Ada'; expected a number and a sentence"):
        list(read_stories(1, "qa1_train.txt", "1 Ada sat.\nAda\n"))


def test_a_tar_holds_what_a_folder_does_and_one_of_its_parts_is_taken(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "babi.tar.gz", "w:gz") as archive:
        archive.add(folder, "tasks/en")
        archive.add(folder, "tasks/en-10k")
    read = read_babi(str(folder), "en-10k")
    assert {story.task for story in read.train} == {1, 19} and len(read.train) == 3
    assert read == read_babi(str(tmp_path / "babi.tar.gz"), "en-10k")
    with pytest.raises(ValueError, match="are the same task; expected one in a folder hn"):
        read_babi(str(tmp_path / "babi.tar.gz"), "hn")


def test_what_is_not_babi_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no qaN_train\.txt in it"):
        read_babi(str(tmp_path / "empty"), "en-10k")
    with pytest.raises(ValueError, match="expected the folder or tar of bAbI"):
        read_babi(str(folder / "README.txt"), "en-10k")
    (folder / "qa1_train.txt").unlink()
    with pytest.raises(ValueError, match=r"no qa1_train\.txt beside the test"):
        read_babi(str(folder), "en-10k")
    with pytest.raises(ValueError, match="task babi has no data; expected --data"):
        _ = BabiTask().input_size


def test_words_come_back_from_what_is_fed_and_due(folder: Path) -> None:
    task = BabiTask().moved(folder)
    assert task.input_size == task.output_size == len(set(task.vocabulary))
    generator = torch.Generator().manual_seed(1)
    stories = {story.words: story.answers for story in task.stories.train}
    seen = set()
    for _ in range(40):
        batch = task.draw(4, generator)
        for row in range(4):
            words = tuple(word for word in said(task, batch.inputs[:, row]) if word)
            answers = said(task, batch.targets[:, row])[: len(words)]
            assert tuple(answers) == stories[words]
            assert [bool(word) for word in answers] == (batch.due[: len(words), row] > 0).tolist()
            assert not batch.due[len(words) :, row].any()
            seen.add(words)
    assert len(seen) == 3
    with pytest.raises(ValueError, match="most_words is 3; no story is as short"):
        replace(task, most_words=3).draw(1, generator)


def test_a_plan_keeps_the_words_and_refuses_data_with_others(folder: Path, tmp_path: Path) -> None:
    task = BabiTask().moved(folder)
    Plan(task, BabiTask.recipe, ["dnc"]).write(tmp_path)
    assert json.loads((tmp_path / "training.json").read_text())["task"] == "babi"
    assert Plan.read(tmp_path).task == task
    (folder / "qa1_train.txt").write_text(WHERE.replace("Ben", "Bea"))
    other = replace(BabiTask(**{**asdict(task), "part": "other"}))  # read anew
    with pytest.raises(ValueError, match="has the word 'bea', which the vocabulary lacks"):
        other.draw(1, torch.Generator())


def test_a_question_is_wrong_if_any_of_its_words_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = BabiTask().moved(folder)
    model = new_model(task, replace(BabiTask.recipe, model=SIZES))

    def unroll(inputs: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
        """Says `n` first, then `attic`, whatever is asked."""
        outputs = torch.zeros(len(inputs), inputs.size(1), task.output_size)
        outputs[:, :, task.vocabulary.index("attic")] = 1
        for row in range(inputs.size(1)):
            asked = [place for place, word in enumerate(said(task, inputs[:, row])) if word == "-"]
            if len(asked) == 2 and asked[1] == asked[0] + 1:
                outputs[asked[0], row, task.vocabulary.index("n")] = 2
        return outputs, state

    monkeypatch.setattr(model, "unroll", unroll)
    assert list(task.examine(model, 1000)) == [
        "task 1: 33.3 % wrong, 1 of 3 questions",
        "task 19: 100.0 % wrong, 1 of 1 questions",
        "mean error 66.7 %, 2 of 2 tasks failed (more than 5 % wrong)",
    ]


@pytest.mark.long
def test_stories_are_learned_by_heart(folder: Path) -> None:
    task = BabiTask().moved(folder)
    recipe = replace(BabiTask.recipe, model=SIZES, iterations=300, batch_size=4, lr=3e-3)
    training = Training(task, new_model(task, recipe), recipe)
    assert wrong_share(list(training.iterate())[-20:]) == 0
    *_, last = task.examine(training.model, 10)
    assert last == "mean error 0.0 %, 0 of 2 tasks failed (more than 5 % wrong)"
