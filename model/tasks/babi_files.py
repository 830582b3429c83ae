"""Stories and questions in the published format of bAbI (Weston et al. 2015), as numbers of words."""

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

ASKED = "-"
"""The word at which a word of an answer is due."""
NAME = re.compile(r"qa(\d+)_(?:.*_)?(train|test)\.txt")
WORD = re.compile(r"[^\s.?]+|[.?]")


@dataclass(frozen=True)
class Story:
    """One story with its questions, word for word, in lower case; `.` and `?` are words too."""

    task: int
    words: tuple[str, ...]
    answers: tuple[str, ...]  # of each word: the answer's word if the word is ASKED, else empty

    def numbers(self, places: dict[str, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Words and answers by their places in a vocabulary; -1 where no answer is due."""
        answers = [places[word] if word else -1 for word in self.answers]
        return np.array([places[word] for word in self.words]), np.array(answers)


@dataclass(frozen=True)
class Babi:
    """All stories that a folder or archive holds."""

    train: tuple[Story, ...]
    test: tuple[Story, ...]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word of stories and answers, in the alphabet's order."""
        stories = (*self.train, *self.test)
        return tuple(sorted({word for story in stories for word in (*story.words, *story.answers) if word}))


@lru_cache(maxsize=2)
def read_babi(source: str, part: str) -> Babi:
    """Reads `qaN_…train.txt` and `qaN_…test.txt` from a folder, or from a tar with any compression.

    Of files that are there more than once, those in a folder named `part` are taken. Raises ValueError that names the
    file and line, or what is missing; OSError.
    """
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for path, text in _texts(Path(source), part):
        match = NAME.fullmatch(Path(path).name)
        assert match is not None, "only such files are given"
        key = (match[2], int(match[1]))
        if key in found:
            raise ValueError(f"{source}: {found[key][0]} and {path} are the same task; expected one in a folder {part}")
        found[key] = path, text
    if missing := sorted({task for _, task in found} - {task for kind, task in found if kind == "train"}):
        raise ValueError(f"{source}: no qa{missing[0]}_train.txt beside the test of that task")
    if not found:
        raise ValueError(f"{source}: no qaN_train.txt in it; expected the folder or tar of bAbI")
    parts = {
        kind: tuple(
            story
            for task in sorted(task for other, task in found if other == kind)
            for story in read_stories(task, *found[kind, task])
        )
        for kind in ("train", "test")
    }
    return Babi(parts["train"], parts["test"])


def read_stories(task: int, path: str, text: str) -> Iterator[Story]:
    """The stories of one file's text; each begins at a line with the number 1."""
    words: list[str] = []
    answers: list[str] = []
    for place, line in enumerate(text.splitlines(), 1):
        number, _, rest = line.strip().partition(" ")
        if not number.isdigit() or not rest:
            raise ValueError(
                f"{path}:{place}: {line!r}; expected a number and a sentence, or a question and its answer"
            )
        if number == "1" and words:
            yield Story(task, tuple(words), tuple(answers))
            words, answers = [], []
        sentence, *answer = rest.split("\t")
        said = WORD.findall(sentence.lower())
        words += said
        answers += [""] * len(said)
        if answer:
            due = answer[0].lower().split(",")
            words += [ASKED] * len(due)
            answers += [word.strip() for word in due]
    if words:
        yield Story(task, tuple(words), tuple(answers))


def _texts(source: Path, part: str) -> Iterator[tuple[str, str]]:
    """The path and text of each file that bAbI has."""
    if source.is_dir():
        files = [path for path in sorted(source.rglob("*.txt")) if NAME.fullmatch(path.name)]
        for name in _of_part([str(path) for path in files], part):
            yield name, Path(name).read_text(encoding="utf-8")
        return
    try:
        with tarfile.open(source) as archive:
            names = [member.name for member in archive if member.isfile() and NAME.fullmatch(Path(member.name).name)]
            for name in _of_part(sorted(names), part):
                file = archive.extractfile(name)
                assert file is not None, "only files are named"
                yield f"{source}/{name}", file.read().decode()
    except tarfile.TarError as exc:
        raise ValueError(f"{source}: {exc}; expected the folder or tar of bAbI") from exc


def _of_part(names: Sequence[str], part: str) -> list[str]:
    chosen = [name for name in names if part in Path(name).parts]
    return chosen or list(names)
