"""A task is found by its module and class, trained, gone on with and examined like ours."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dnc_serve.client.cli import train as train_command
from dnc_serve.model.runs import Plan, Run, read_metrics
from dnc_serve.model.tasks import TASKS, address_of, make_task, task_class

SOURCE = '''
"""A task of a user's: the bits of the timestep before, drawn from a file of bits."""

from dataclasses import dataclass
from functools import cached_property

import torch

from dnc_serve.model.tasks import Batch, Recipe, Task, option


@dataclass(frozen=True, kw_only=True)
class Echo(Task):
    name = "echo"
    recipe = Recipe(
        model={"hidden_size": 12, "num_hidden_layers": 1, "nr_cells": 4, "cell_size": 4, "read_heads": 1},
        iterations=12,
        batch_size=4,
    )

    file: str = option("bits.txt", "where the bits stand")
    length: int = option(5, "timesteps")

    @cached_property
    def bits(self):
        return torch.tensor([float(bit) for bit in open(self.file).read().strip()])

    @property
    def input_size(self):
        return 1

    @property
    def output_size(self):
        return 1

    def draw(self, batch_size, generator):
        starts = torch.randint(0, len(self.bits) - self.length, (batch_size,), generator=generator)
        bits = self.bits[starts + torch.arange(self.length).unsqueeze(1)].unsqueeze(2)
        due = torch.ones(self.length, batch_size)
        due[0] = 0
        return Batch(2 * bits - 1, bits.roll(1, 0), due)


class NoRecipe(Task):
    name = "none"


def build():
    return Echo()
'''


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working folder, as a user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_tasks.py").write_text(SOURCE)
    (tmp_path / "bits.txt").write_text("0110100110010110" * 4)
    monkeypatch.delitem(sys.modules, "own_tasks", raising=False)
    return "own_tasks:Echo"


def call(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    train_command.configure(parser)
    return train_command.run(parser.parse_args(argv))


def test_a_task_of_ones_own_is_trained_resumed_and_examined(
    own_module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(own_module, "-o", "whole", "--task-option", "length=4", "--task-option", "file=bits.txt") == 0
    plan = Plan.read("whole")
    assert (plan.task.argument, plan.task.length) == (own_module, 4)  # type: ignore[attr-defined]

    with Run.create("part", plan) as broken:
        assert not broken.train(lambda _: None, checkpoint_every=100, stop=True)
    # In a process of its own, which knows nothing but the folder.
    command = [str(Path(sys.executable).parent / "dnc"), "train", own_module, "--resume", "part"]
    subprocess.run(command, check=True, capture_output=True)
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in ("whole", "part")]
    assert losses[0] == losses[1]

    assert call(own_module, "--evaluate", "whole", "--episodes", "100") == 0
    assert "as trained, fresh: " in capsys.readouterr().out
    assert call("copy", "--resume", "whole") == 2
    assert f"whole is a run of the task {own_module}; expected one of copy" in capsys.readouterr().err


def test_ours_have_their_names() -> None:
    for name in TASKS:
        assert address_of(task_class(name)) == name == make_task(name, {}).argument


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cpy", "task is 'cpy'; expected one of copy, repeat_copy, .*, a class as my_package.my_tasks:MyTask, or data"),
        ("nowhere.tasks:Mine", "there is no module 'nowhere.tasks', neither in /"),
        ("json.nothing:Mine", "there is no module 'json.nothing'"),
        (":Mine", "there is no module ''"),
        ("..tasks:Mine", "there is no module '..tasks'"),
        (
            "own_tasks:Eco",
            "own_tasks has no 'Eco'; expected a subclass of dnc_serve.model.tasks.Task; it has Echo, NoRec",
        ),
        ("own_tasks:build", "own_tasks has 'build', a function; expected a subclass of dnc_serve.model.tasks.Task"),
        ("own_tasks:NoRecipe", "task own_tasks:NoRecipe lacks the class attribute recipe"),
        ("absent.npz", "absent.npz: No such file or directory"),
    ],
)
def test_what_is_no_task_is_told(
    own_module: str, name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(name) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "runs").exists()


def test_a_module_that_lacks_what_it_imports_says_what(
    own_module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "needy_tasks.py").write_text("import a_library_that_is_not_there\n")
    assert call("needy_tasks:Mine") == 1
    assert "No module named 'a_library_that_is_not_there'" in capsys.readouterr().err
