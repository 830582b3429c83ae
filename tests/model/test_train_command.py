"""`dnc train` and `dnc export`, as their parsers and `run` functions take what a user types."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dnc_serve.client.cli import export as export_command
from dnc_serve.client.cli import train as train_command
from dnc_serve.model.artifact import load_artifact
from dnc_serve.model.runs import Plan, read_metrics
from dnc_serve.model.tasks import TASKS
from dnc_serve.model.weights import load_model

TINY = [
    "--hidden-size", "12", "--nr-cells", "6", "--cell-size", "6", "--batch-size", "3",
    "--task-option", "bits=2", "--task-option", "max_length=2",
]  # fmt: skip
# Trains, and gets the signal while the twelfth batch is drawn.
PROGRAM = """
import argparse, os, signal, sys
from dnc_serve.client.cli import train
from dnc_serve.model.tasks.copy import Copy

draw, drawn = Copy.draw, 0

def draw_and_signal(*arguments):
    global drawn
    drawn += 1
    if drawn == 12:
        os.kill(os.getpid(), signal.SIGTERM)
    return draw(*arguments)

Copy.draw = draw_and_signal
parser = argparse.ArgumentParser()
train.configure(parser)
sys.exit(train.run(parser.parse_args()))
"""


def call(command: ModuleType, *argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    code: int = command.run(parser.parse_args([str(text) for text in argv]))
    return code


def test_the_commands_know_every_task() -> None:
    assert tuple(TASKS) == train_command.TASK_NAMES


def test_data_are_trained_on_by_their_columns_and_gone_on_with_where_they_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in "abcd":
        rows = "".join(f"{second},{20 + second},{0.5 * second}\n" for second in range(6))
        (Path("data") / f"{name}.csv").write_text(f"second,load,heat\n{rows}")
    columns = ["--inputs", "second, load", "--outputs", "heat"]
    assert call(train_command, "data", "-o", "run", *columns, "--iterations", "3", "--hidden-size", "8") == 0
    assert capsys.readouterr().out.splitlines()[1] == "run/CARD.md"
    assert (Plan.read("run").task.input_size, Plan.read("run").task.output_size) == (2, 1)
    Path("data").rename("moved")
    assert call(train_command, "moved", "--evaluate", "run") == 0
    assert capsys.readouterr().out.startswith("held out, 1 sequences, 6 answers: heat off by ")
    assert call(train_command, "moved", "--resume", "run") == 0
    assert call(train_command, "copy", "--evaluate", "run") == 2
    assert call(train_command, "moved", "--resume", "run", *columns) == 2
    assert "--inputs, --outputs can't be changed by --resume" in capsys.readouterr().err
    assert call(train_command, "copy", *columns) == 2
    assert "task copy has no option inputs, outputs; expected some of bits" in capsys.readouterr().err


def test_flags_change_the_recipe_and_the_rest_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert (
        call(train_command, "copy", "-o", run, *TINY, "--iterations", "5", "--optimizer", "rmsprop", "--seed", "4") == 0
    )
    plan = Plan.read(run)
    assert (plan.task.input_size, plan.recipe.optimizer, plan.recipe.seed, plan.recipe.iterations) == (
        4,
        "rmsprop",
        4,
        5,
    )
    assert plan.recipe.model["hidden_size"] == 12
    assert plan.recipe.carry == plan.task.recipe.carry > 0
    assert capsys.readouterr().out.startswith(f"{run}: iteration 5, loss ")


@pytest.mark.parametrize("task", [name for name in TASKS if name not in ("copy", "babi")])
def test_every_task_trains(task: str, tmp_path: Path) -> None:
    sizes = ["--hidden-size", "12", "--nr-cells", "24", "--cell-size", "6", "--batch-size", "2", "--iterations", "2"]
    assert call(train_command, task, "-o", tmp_path / "run", *sizes) == 0
    assert len(read_metrics(tmp_path / "run")) == 2


def test_a_task_with_data_goes_on_where_they_are_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    data.mkdir()
    for kind in ("train", "test"):
        (data / f"qa1_{kind}.txt").write_text("1 Ada is in the attic.\n2 Where is Ada?\tattic\t1\n")
    sizes = ["--hidden-size", "12", "--nr-cells", "8", "--cell-size", "6", "--iterations", "2"]
    assert call(train_command, "babi", "-o", run, *sizes) == 2
    assert "task babi has no data; expected --data" in capsys.readouterr().err
    assert call(train_command, "babi", "-o", run, "--data", data, *sizes) == 0
    data.rename(tmp_path / "moved")
    assert call(train_command, "babi", "--evaluate", run, "--data", tmp_path / "moved") == 0
    assert " 1 questions\nmean error " in capsys.readouterr().out
    assert call(train_command, "babi", "--resume", run, "--data", tmp_path / "moved") == 0
    assert call(train_command, "babi", "--resume", run, "--data", tmp_path / "nowhere") == 2
    capsys.readouterr()
    assert call(train_command, "copy", "-o", tmp_path / "copy", "--data", tmp_path) == 2
    assert "task copy takes no data; expected no --data" in capsys.readouterr().err


def test_a_run_starts_from_anothers_weights_with_more_slots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert call(train_command, "copy", "-o", first, *TINY, "--iterations", "3") == 0
    more = [*TINY, "--nr-cells", "30", "--iterations", "1", "--lr", "1e-9", "--final-lr", "1e-9", "--optimizer", "sgd"]
    assert call(train_command, "copy", "-o", second, *more, "--start-from", first) == 0
    (before, after) = (load_model(folder).state_dict() for folder in (first, second))
    torch.testing.assert_close(dict(after), dict(before))
    capsys.readouterr()
    assert call(train_command, "recall", "-o", tmp_path / "third", "--hidden-size", "12", "--start-from", first) == 2
    assert "don't fit this model" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
    assert call(train_command, "copy", "--resume", second, "--start-from", first) == 2
    assert "--start-from can't be changed by --resume" in capsys.readouterr().err


def test_a_signal_leaves_a_run_that_resumes_to_the_same_losses(tmp_path: Path) -> None:
    flags = ["copy", *TINY, "--iterations", "30"]
    assert call(train_command, *flags, "-o", tmp_path / "whole") == 0

    broken = tmp_path / "broken"
    signalled = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        [*signalled, *flags, "-o", str(broken), "--checkpoint-every", "5"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"interrupted; go on with: dnc train copy --resume {broken}" in done.stderr
    assert 10 <= len(read_metrics(broken)) < 30

    assert call(train_command, "copy", "--resume", broken) == 0
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (broken, tmp_path / "whole")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 30


def test_pictures_are_written_as_asked(tmp_path: Path) -> None:
    pictures = ["--png", tmp_path / "png", "--tensorboard", tmp_path / "board", "--pictures-every", "2"]
    assert call(train_command, "copy", "-o", tmp_path / "run", *TINY, "--iterations", "4", *pictures) == 0
    assert len(list((tmp_path / "png").iterdir())) == 2 * 6
    assert len(list((tmp_path / "board").iterdir())) == 1


def test_the_losses_of_runs_are_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for optimizer in ("adam", "sgd"):
        flags = ["-o", tmp_path / optimizer, *TINY, "--iterations", "8", "--lr", "0.003", "--optimizer", optimizer]
        assert call(train_command, "copy", *flags) == 0
    picture = tmp_path / "losses.svg"
    assert call(train_command, "copy", "--plot", picture, tmp_path / "adam", tmp_path / "sgd") == 0
    assert capsys.readouterr().out.endswith(f"{picture}\n")
    assert picture.read_text().count("learning rate 0.003") >= 2  # as comments of the legend's glyphs
    assert call(train_command, "copy", "--plot", picture, tmp_path / "nothing") == 2


def test_a_bundled_model_is_examined_with_more_slots(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(train_command, "copy", "--evaluate", "copy", "--episodes", "100", "--nr-cells", "80") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 * 4
    assert lines[0].startswith("1 vectors, fresh: 0 of 100 episodes wrong, 0 of 100 answers, 0 of 800 bits")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task-option", "length=3"], "task copy has no option length; expected some of bits, min_length"),
        (["--task-option", "bits"], "--task-option is 'bits'; expected NAME=VALUE"),
        (["--task-option", "bits=many"], "task option bits is 'many'; expected a value as its default, 8"),
        (["--device", "abacus"], "device is 'abacus'; expected one that torch"),
        (["--lr", "0"], "lr is 0.0; expected more than 0"),
        (["--visdom", "localhost"], "--visdom is 'localhost'; expected a URL"),
        (["--resume", "nowhere", "--lr", "0.1"], "--lr can't be changed by --resume"),
        (["--resume", "nowhere"], "training.json doesn't exist"),
        (["--evaluate", "recall"], "recall is a run of the task recall; expected one of copy"),
    ],
)
def test_wrong_values_end_with_2_and_a_word(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(train_command, "copy", *flags) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_training_that_turns_nan_ends_with_1_and_names_the_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--optimizer", "sgd", "--lr", "1e30", "--max-grad-norm", "1e30", "--iterations", "50"]
    assert call(train_command, "copy", "-o", tmp_path / "run", *TINY, *flags) == 1
    error = capsys.readouterr().err
    assert "dnc train: iteration " in error and ("turned" in error or "is not finite" in error)


def test_a_run_is_exported_with_the_slots_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(train_command, "copy", "-o", tmp_path / "run", *TINY, "--iterations", "2") == 0
    assert call(export_command, tmp_path / "run") == 0
    assert load_artifact(tmp_path / "run" / "artifact").config.nr_cells == 6
    assert call(export_command, tmp_path / "run", "-o", tmp_path / "larger", "--nr-cells", "11") == 0
    assert load_artifact(tmp_path / "larger").config.nr_cells == 11
    assert "larger: 11 memory slots, digest " in capsys.readouterr().out
    assert json.loads((tmp_path / "larger" / "manifest.json").read_text())["config"]["nr_cells"] == 11


def test_what_is_not_a_run_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(export_command, tmp_path / "nothing") == 2
    assert "nothing" in capsys.readouterr().err
    assert call(export_command, "copy", "-o", tmp_path / "artifact", "--nr-cells", "0") == 2
    assert "nr_cells is 0; expected at least 1" in capsys.readouterr().err
