"""Data of one's own are split, normalised, drawn and examined."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dnc_serve.model.recipe import Recipe
from dnc_serve.model.runs import Plan, Run, read_metrics
from dnc_serve.model.tasks import make_task
from dnc_serve.model.tasks.data import DataTask
from dnc_serve.model.tasks.data_report import report
from dnc_serve.model.weights import load_model

MODEL = {"hidden_size": 16, "num_hidden_layers": 1, "nr_cells": 4, "cell_size": 4, "read_heads": 1, "clip": 0}


def make(folder: Path, name: str = "data.npz", options: Mapping[str, Any] | None = None, **arrays: Any) -> DataTask:
    np.savez(folder / name, **arrays)
    task = make_task(str(folder / name), options or {})
    assert isinstance(task, DataTask)
    return task


@pytest.fixture
def numbers(tmp_path: Path) -> DataTask:
    """40 sequences of 4 to 9 timesteps; each answer is the sum of this and the previous input, in other units."""
    random = np.random.default_rng(1)
    lengths = random.integers(4, 10, 40)
    x = random.normal(300, 20, (lengths.sum(), 2))
    before = np.concatenate([np.concatenate([[300], part[:-1, 0]]) for part in np.split(x, lengths.cumsum()[:-1])])
    return make(tmp_path, x=x, y=0.01 * (x[:, 0] + before) - 50, lengths=lengths)


@pytest.fixture
def classes(tmp_path: Path) -> DataTask:
    """30 sequences of 6 timesteps; the class is which of three inputs is largest."""
    x = np.random.default_rng(2).normal(size=(30, 6, 3))
    return make(tmp_path, x=x, y=x.argmax(2))


def train(folder: Path, task: DataTask, iterations: int, **recipe: Any) -> Run:
    settings = Recipe(model=MODEL, iterations=iterations, batch_size=16, lr=1e-2, final_lr=1e-3, **recipe)
    with Run.create(folder, Plan(task, settings, ["dnc", "train", "data.npz"])) as run:
        assert run.train(lambda _: None, checkpoint_every=100)
    return run


def test_a_fifth_is_held_out_and_what_is_trained_on_is_normalised(numbers: DataTask) -> None:
    data = numbers.data
    assert (len(data.trained.lengths), len(data.held_out.lengths)) == (32, 8)
    assert (numbers.input_size, numbers.output_size, data.classes) == (2, 1, None)
    everything = torch.cat((data.trained.inputs, data.held_out.inputs))
    assert sorted(everything[:, 0].tolist()) == sorted(np.load(numbers.source)["x"][:, 0].astype(np.float32).tolist())
    trained = data.input_scale.normalised(data.trained.inputs)
    torch.testing.assert_close(trained.mean(0), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(trained.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-4)
    other = make_task(numbers.source, {"split_seed": 2, "held_out": 0.5})
    assert isinstance(other, DataTask)
    assert len(other.data.held_out.lengths) == 20


def test_a_batch_holds_whole_sequences_and_nothing_is_due_behind_their_ends(numbers: DataTask) -> None:
    batch = numbers.draw(50, torch.Generator().manual_seed(3))
    lengths = batch.due.sum(0).long()
    assert len(batch.inputs) == lengths.max() and lengths.min() >= 4
    starts = {
        tuple(part[0].tolist()): part
        for part in numbers.data.input_scale.normalised(numbers.data.trained.inputs).split(
            numbers.data.trained.lengths.tolist()
        )
    }
    for row, length in enumerate(lengths.tolist()):
        sequence = starts[tuple(batch.inputs[0, row].tolist())]
        assert torch.equal(batch.inputs[:length, row], sequence)
        assert not batch.inputs[length:, row].any() and not batch.targets[length:, row].any()


def test_a_long_sequence_is_drawn_in_stretches_and_its_end_is_held_out(tmp_path: Path) -> None:
    x = np.arange(100.0)[:, None]
    task = make(tmp_path, x=x, y=x, options={"window": 7})
    assert (len(task.data.trained.inputs), task.data.held_out.inputs[0].item()) == (80, 80)
    batch = task.draw(200, torch.Generator().manual_seed(1))
    assert batch.inputs.shape == (7, 200, 1)
    steps = batch.inputs.diff(dim=0)
    torch.testing.assert_close(steps, steps[:1, :1].expand_as(steps))
    firsts = batch.inputs[0, :, 0] * task.data.input_scale.deviation[0] + task.data.input_scale.mean[0]
    assert (firsts.min().round(), firsts.max().round()) == (0, 73)


def test_loss_and_wrong_answers_of_numbers(numbers: DataTask) -> None:
    batch = numbers.draw(8, torch.Generator().manual_seed(3))
    assert numbers.loss(batch.targets + batch.due.unsqueeze(2), batch) == pytest.approx(1)
    assert numbers.wrong(batch.targets + 0.6, batch).sum() == numbers.units(batch) == batch.due.sum()
    assert not numbers.wrong(batch.targets + 0.4, batch).any()


def test_loss_and_wrong_answers_of_classes(classes: DataTask) -> None:
    assert (classes.input_size, classes.output_size, classes.data.output_scale) == (3, 3, None)
    batch = classes.draw(8, torch.Generator().manual_seed(3))
    assert batch.targets.shape == (6, 8, 1)
    assert classes.loss(torch.zeros(6, 8, 3), batch) == pytest.approx(np.log(3))
    right = 9 * torch.nn.functional.one_hot(batch.targets[:, :, 0].long(), 3).float()
    assert classes.loss(right, batch) < 1e-3
    assert not classes.wrong(right, batch).any()
    assert classes.wrong(-right, batch).all()


def test_the_card_has_the_error_of_the_model_that_is_saved(numbers: DataTask, tmp_path: Path) -> None:
    run = train(tmp_path / "run", numbers, 150)
    model = load_model(run.folder)
    held_out, trained = report(numbers.data, model)
    assert [*numbers.examine(model, episodes=1)] == [held_out, trained]
    assert (held_out.sequences, trained.sequences) == (8, 32)
    part = numbers.data.held_out
    squares, plain = [], []
    for inputs, targets in zip(
        part.inputs.split(part.lengths.tolist()), part.targets.split(part.lengths.tolist()), strict=True
    ):
        with torch.no_grad():
            outputs, _ = model.unroll(inputs.unsqueeze(1), model.initial_state(1))
        squares += (outputs[:, 0] - targets).square().flatten().tolist()
        plain += (targets - numbers.data.trained.targets.mean()).square().flatten().tolist()
    assert held_out.error == pytest.approx([np.mean(squares) ** 0.5], rel=1e-3)
    assert held_out.plain == pytest.approx([np.mean(plain) ** 0.5], rel=1e-3)
    assert held_out.error[0] < 0.5 * held_out.plain[0]
    card = (run.folder / "CARD.md").read_text()
    assert f"| y[0] | {held_out.error[0]:.6g} | {held_out.plain[0]:.6g} | {trained.error[0]:.6g} |" in card
    assert "`dnc train data.npz`" in card and numbers.sha256 in card


def test_classes_are_learned_and_the_card_counts_them(classes: DataTask, tmp_path: Path) -> None:
    run = train(tmp_path / "run", classes, 100)
    held_out, _ = report(classes.data, load_model(run.folder))
    assert held_out.error[0] < 0.3 < held_out.plain[0]
    assert f"| y[0] | {held_out.error[0]:.2%} |" in (run.folder / "CARD.md").read_text()


def test_a_run_of_data_is_read_again_and_resumes_to_the_same_losses(numbers: DataTask, tmp_path: Path) -> None:
    plan = Plan(numbers, Recipe(model=MODEL, iterations=20, batch_size=4), ["dnc"])
    with Run.create(tmp_path / "whole", plan) as whole:
        whole.train(lambda _: None, checkpoint_every=100)
    with Run.create(tmp_path / "broken", plan) as broken:
        broken.train(lambda _: None, checkpoint_every=5, stop=True)
    assert not (broken.folder / "CARD.md").exists()
    assert Plan.read(broken.folder) == plan
    with Run.resume(broken.folder) as resumed:
        resumed.train(lambda _: None, checkpoint_every=100)
    losses = [[row["loss"] for row in read_metrics(run.folder)] for run in (whole, resumed)]
    assert losses[0] == losses[1]


def test_moved_data_are_known_again_and_changed_data_refused(numbers: DataTask, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.npz"
    shutil.move(numbers.source, moved)
    reread = DataTask.from_options(json.loads(json.dumps({"source": numbers.source, "sha256": numbers.sha256})))
    with pytest.raises(FileNotFoundError):
        _ = reread.data
    assert reread.moved(moved).input_size == 2
    np.savez(moved, x=np.ones((4, 2)), y=np.ones(4))
    with pytest.raises(ValueError, match=rf"expected {numbers.sha256[:16]}…, that of the data which the run"):
        _ = reread.moved(moved).data


def test_numbers_of_any_kind_are_taken(tmp_path: Path) -> None:
    x, y = np.arange(12, dtype=">i2").reshape(6, 2), np.arange(6, dtype=">f4")
    task = make(tmp_path, x=x, y=y)
    assert (task.data.trained.inputs.dtype, task.data.classes) == (torch.float32, None)
    assert make(tmp_path, x=x, y=y > 2).data.classes == 2
    assert make(tmp_path, x=x, y=np.array([0.0, 1, 0, 1, 0, 1]), options={"targets": "classes"}).data.classes == 2


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1, 2, 3, 1, 2, 3], r"y\[0\] has the classes 1 to 3, 3 in all; expected at least two, counted from 0"),
        ([0, 1, 3, 0, 1, 3], "classes 0 to 3, 3 in all"),
        ([0, 0, 0, 0, 0, 0], "classes 0 to 0, 1 in all"),
        ([[0, 1]] * 6, r"y\[0\], y\[1\] are to be classes; expected one column of whole numbers; measured numbers"),
    ],
)
def test_what_can_be_no_classes_is_told(y: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, x=np.arange(6.0)[:, None], y=y)
    measured = make(tmp_path, x=np.arange(6.0)[:, None], y=y, options={"targets": "numbers"})
    assert measured.data.classes is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "words"}, "targets is 'words'; expected one of auto, numbers, classes"),
        ({"held_out": 1}, r"held_out is 1; expected a share in \(0, 1\)"),
        ({"window": 0}, "window is 0; expected at least 1 timestep"),
        ({"window": "wide"}, "task option window is 'wide'; expected a value as its default, 100"),
        ({"rows": 1}, "task data has no option rows"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, x=np.ones((6, 1)), y=np.ones(6), options=options)


def test_data_have_no_curriculum(numbers: DataTask, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task data can't be lengthened"):
        train(tmp_path / "run", numbers, 2, curriculum_increment=1)
    assert not (tmp_path / "run").exists()
