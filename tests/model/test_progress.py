"""A training tells how it goes: a line every some seconds off a terminal, its metrics on the disk, curves."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dnc_serve.model import progress, runs
from dnc_serve.model.pictures import TensorBoardGallery
from dnc_serve.model.progress import ProgressBar
from dnc_serve.model.recipe import Recipe
from dnc_serve.model.runs import METRICS_FILE, Plan, Run
from dnc_serve.model.tasks.copy import Copy
from dnc_serve.model.train import Progress, wrong_share

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "nr_cells": 4, "cell_size": 4, "read_heads": 1}
PLAN = Plan(Copy(bits=2, max_length=2), Recipe(model=SIZES, iterations=6, batch_size=2), ["dnc", "train", "copy"])


def of_iteration(iteration: int, wrong: int = 1, units: int = 4) -> Progress:
    return Progress(iteration, 5, 0.5, wrong, units, 1e-3, 2.0, 0.01)


def lines(
    every_s: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Sequence[str]:
    monkeypatch.setattr(progress, "LINE_EVERY_S", every_s)
    with Run.create(folder, PLAN) as run, ProgressBar(run.training, "bits") as bar:
        run.train(bar.show, checkpoint_every=100)
    return capsys.readouterr().err.splitlines()


def test_off_a_terminal_a_line_is_printed_every_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = lines(0.0, monkeypatch, capsys, tmp_path / "often")
    assert len(said) == 6
    assert said[0].startswith("copy: iteration 0 of 6, loss 0.") and " bits wrong " in said[0]
    assert lines(1e9, monkeypatch, capsys, tmp_path / "seldom") == []


def test_metrics_reach_their_file_while_a_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FLUSH_EVERY_S", 0.0)
    seen: list[int] = []
    with Run.create(tmp_path, PLAN) as run:
        run.train(lambda _: seen.append(len((tmp_path / METRICS_FILE).read_text().splitlines())), checkpoint_every=100)
    assert seen == [2, 3, 4, 5, 6, 7]


def test_nothing_due_is_nothing_wrong() -> None:
    assert wrong_share([of_iteration(0, 0, 0)]) == 0
    assert wrong_share([of_iteration(0, 0, 0), of_iteration(1)]) == 0.25


def test_tensorboard_has_the_curves_and_none_twice_after_a_resume(tmp_path: Path) -> None:
    for first, last in ((0, 8), (5, 10)):  # killed after iteration 7, and resumed from a checkpoint at 5
        with TensorBoardGallery(tmp_path) as gallery:
            for iteration in range(first, last):
                gallery.plot(iteration, of_iteration(iteration).scalars)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "training/loss",
        "training/wrong",
        "training/learning rate",
        "training/gradient norm",
        "training/timesteps per second",
    }
    curve = events.Scalars("training/wrong")
    assert [event.step for event in curve] == list(range(10))
    assert {event.value for event in curve} == {0.25}
