"""The `dnc` package's commands: every flag, with one dash and two, on real short runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dnc_serve.model.runs import Plan, read_metrics
from dnc_serve.model.tasks.seed_command import main, make_parser
from dnc_serve.model.weights import load_model

FLAGS = [
    "input_size", "rnn_type", "nhid", "dropout", "memory_type", "nlayer", "nhlayer", "lr", "optim", "clip",
    "batch_size", "mem_size", "mem_slot", "read_heads", "sparse_reads", "temporal_reads", "sequence_max_length", "cuda",
    "iterations", "summarize_freq", "check_freq", "visdom",
]  # fmt: skip
SHORT = ["-iterations", "3", "-summarize_freq", "1", "-batch_size", "4"]


def module(name: str, *flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"dnc_serve.model.tasks.{name}", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, -cuda 0 takes it")
def test_the_readmes_command_trains_on_the_cpu_with_a_word(tmp_path: Path) -> None:
    flags = "-cuda 0 -lr 0.001 -rnn_type lstm -nlayer 1 -nhlayer 2 -mem_slot 32 -batch_size 32 -optim adam"
    done = module("copy", *flags.split(), "-iterations", "4", "-summarize_freq", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "CUDA device 0 isn't there (this machine has 0); training on the CPU instead" in done.stderr
    assert re.search(r"Iteration 2/4: mean loss 0\.6\d+, [\d.]+% bits wrong", done.stdout)
    assert "Testing generalization" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert len(read_metrics(run)) == 4
    assert json.loads((run / "training.json").read_text())["command"].startswith(
        f"python -m dnc_serve.model.tasks.copy {flags}"
    )


@pytest.mark.parametrize("name", ["copy", "adding", "argmax"])
def test_help_names_every_flag(name: str) -> None:
    shown = make_parser(name).format_help()
    own = ["curriculum_increment", "curriculum_freq"] if name == "copy" else []
    for flag in FLAGS + own:
        assert f"-{flag}, --{flag}" in " ".join(shown.split()) or f"-{flag} " in shown
    assert ("curriculum" in shown) == bool(own)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("copy", {"nhid": 64, "sequence_max_length": 4, "iterations": 100_000}),
        ("adding", {"nhid": 64, "sequence_max_length": 1000, "iterations": 2000}),
        ("argmax", {"nhid": 100, "sequence_max_length": 4, "iterations": 2000}),
    ],
)
def test_defaults_are_the_packages(name: str, expected: dict[str, int]) -> None:
    args = vars(make_parser(name).parse_args([]))
    common = {
        "input_size": 6, "rnn_type": "lstm", "dropout": 0, "memory_type": "dnc", "nlayer": 1, "nhlayer": 2, "lr": 1e-4,
        "optim": "adam", "clip": 50, "batch_size": 100, "mem_size": 20, "mem_slot": 16, "read_heads": 4,
        "sparse_reads": 10, "temporal_reads": 2, "cuda": -1, "summarize_freq": 100, "check_freq": 100, "visdom": False,
    }  # fmt: skip
    for flag, value in {**common, **expected}.items():
        assert args[flag] == value, flag


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_flags_reach_the_model_and_the_training(dashes: str, tmp_path: Path) -> None:
    values = {
        "input_size": 5, "rnn_type": "gru", "nhid": 12, "dropout": 0.25, "memory_type": "dnc", "nlayer": 2,
        "nhlayer": 3, "lr": 0.002, "optim": "adamax", "clip": 7, "batch_size": 3, "mem_size": 6, "mem_slot": 9,
        "read_heads": 2, "sparse_reads": 1, "temporal_reads": 1, "sequence_max_length": 2, "cuda": -1, "iterations": 4,
        "summarize_freq": 2, "check_freq": 2, "curriculum_increment": 1, "curriculum_freq": 2, "run": tmp_path / "run",
    }  # fmt: skip
    assert main("copy", [text for flag, value in values.items() for text in (dashes + flag, str(value))]) == 0
    plan = Plan.read(tmp_path / "run")
    assert plan.task.input_size == plan.task.output_size == 5
    recipe = plan.recipe
    assert (recipe.optimizer, recipe.lr, recipe.max_grad_norm, recipe.batch_size) == ("adamax", 0.002, 7, 3)
    assert (recipe.curriculum_increment, recipe.curriculum_every, recipe.iterations) == (1, 2, 4)
    config = load_model(tmp_path / "run").config
    assert (config.rnn_type, config.hidden_size, config.num_layers, config.num_hidden_layers) == ("gru", 12, 2, 3)
    assert (config.dropout, config.nr_cells, config.cell_size, config.read_heads) == (0.25, 9, 6, 2)


@pytest.mark.parametrize("name", ["adding", "argmax"])
def test_the_other_tasks_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(name, [*SHORT, "-sequence_max_length", "6", "-run", str(tmp_path / "run")]) == 0
    assert "answers wrong" in capsys.readouterr().out


def test_the_memory_is_shown_at_every_summary(tmp_path: Path) -> None:
    flags = ["-png", str(tmp_path / "png"), "-tensorboard", str(tmp_path / "board"), "-run", str(tmp_path / "run")]
    assert main("copy", [*SHORT, "-summarize_freq", "2", *flags]) == 0
    assert len(list((tmp_path / "png").iterdir())) == 2 * 6
    assert list((tmp_path / "board").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-memory_type", "sam"], "memory_type is 'sam'; expected 'dnc'"),
        (["-optim", "lion"], "optimizer is 'lion'; expected one of adam, rmsprop"),
        (["-rnn_type", "cnn"], "rnn_type is 'cnn'; expected one of"),
        (["-summarize_freq", "0"], "summarize_freq is 0; expected at least 1"),
        (["-mem_slot", "0"], "nr_cells is 0; expected at least 1"),
    ],
)
def test_wrong_values_end_with_2_and_their_name(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("copy", [*flags, "-run", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_visdom_that_is_missing_ends_with_1_and_the_way_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "visdom", None)
    assert main("copy", ["-visdom", "-run", str(tmp_path / "run")]) == 1
    assert 'pip install "setuptools<80"' in capsys.readouterr().err
