"""A run's folder: what is in it, and that a resumed run is the uninterrupted one."""

import csv
import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dnc_serve.model.interrupt import Interrupt
from dnc_serve.model.recipe import Recipe
from dnc_serve.model.runs import Plan, Run, read_metrics
from dnc_serve.model.tasks.copy import Copy
from dnc_serve.model.train import NotFiniteError, Progress
from dnc_serve.model.weights import load_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "nr_cells": 6, "cell_size": 6, "read_heads": 1}
PLAN = Plan(
    Copy(bits=3, max_length=3),
    Recipe(model=SIZES, iterations=30, batch_size=4, lr=1e-2, carry=0.5, seed=7),
    ["dnc", "train", "copy", "--seed", "7"],
)


def nothing(progress: Progress) -> None:
    """Watches no iteration."""


def without_times(folder: Path) -> list[dict[str, float]]:
    rows = [dict(row) for row in read_metrics(folder)]
    for row in rows:
        del row["seconds"], row["timesteps_per_s"]
    return rows


def test_a_run_folder_says_what_was_run_and_how_it_went(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", PLAN) as run:
        assert run.train(nothing, checkpoint_every=10)
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "metrics.csv",
        "training.json",
        "weights.safetensors",
    ]
    training = json.loads((run.folder / "training.json").read_text())
    assert training["command"] == "dnc train copy --seed 7"
    assert training["recipe"]["seed"] == 7
    assert training["task"] == "copy"
    assert Plan.read(run.folder) == PLAN
    with (run.folder / "metrics.csv").open(newline="") as metrics:
        assert next(csv.reader(metrics)) == [
            "iteration", "timesteps", "loss", "wrong", "units", "lr", "grad_norm", "seconds", "timesteps_per_s",
        ]  # fmt: skip
    assert [row["iteration"] for row in read_metrics(run.folder)] == list(range(30))
    weights = load_file(run.folder / "weights.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in run.training.model.state_dict().items())
    assert load_model(run.folder).config == run.training.model.config


def test_a_run_resumed_after_an_interrupt_is_the_uninterrupted_one(tmp_path: Path) -> None:
    with Run.create(tmp_path / "whole", PLAN) as whole:
        whole.train(nothing, checkpoint_every=10)

    interrupt = Interrupt()
    with Run.create(tmp_path / "broken", PLAN) as broken:

        def ask_after_13(progress: Progress) -> None:
            if progress.iteration == 12:
                interrupt.ask()

        assert not broken.train(ask_after_13, checkpoint_every=10, stop=interrupt)
    assert len(read_metrics(broken.folder)) == 13
    with Run.resume(broken.folder) as resumed:
        assert resumed.training.iteration == 13
        assert resumed.train(nothing, checkpoint_every=10)

    assert without_times(broken.folder) == without_times(whole.folder)
    one, other = (load_file(run.folder / "weights.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_the_second_acts_as_ever(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt
        signal.raise_signal(number)
        assert interrupt
        assert signal.getsignal(number) == before


def test_metrics_after_the_last_checkpoint_are_made_again(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", PLAN) as killed:
        for progress in killed.training.iterate():
            killed.record(progress)
            if progress.iteration == 9:
                killed.checkpoint()
            if progress.iteration == 14:  # killed here, five iterations after the checkpoint
                break
    assert len(read_metrics(killed.folder)) == 15
    before = without_times(killed.folder)
    with Run.resume(killed.folder) as resumed:
        assert len(read_metrics(resumed.folder)) == 10
        resumed.train(nothing, checkpoint_every=100)
    assert without_times(resumed.folder)[:15] == before


def test_a_stop_at_nan_keeps_the_last_checkpoint_and_the_metrics(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", PLAN) as run:

        def poison(progress: Progress) -> None:
            if progress.iteration == 12:
                with torch.no_grad():
                    run.training.model.output.bias[0] = torch.nan

        with pytest.raises(NotFiniteError, match=r"iteration 13: the parameter output\.bias"):
            run.train(poison, checkpoint_every=10)
        assert len(read_metrics(run.folder)) == 13
    weights = load_file(run.folder / "weights.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    with Run.resume(run.folder) as resumed:
        assert resumed.training.iteration == 10


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    Run.create(tmp_path, PLAN).close()
    with pytest.raises(FileExistsError, match="holds a training run already"):
        Run.create(tmp_path, replace(PLAN, command=["other"]))


def test_a_folder_without_a_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"training\.json doesn't exist"):
        Run.resume(tmp_path)
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(ValueError, match="isn't a training run's description"):
        Run.resume(tmp_path)
