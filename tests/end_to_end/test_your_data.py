"""docs/your-data.md: its fifteen lines, and the model that they leave."""

import re
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.client import Client
from dnc_serve.model.runs import Plan
from dnc_serve.model.tasks.data import DataTask
from tests.documents import block, run_python, run_shell
from tests.end_to_end.servers import running

PAGE = "docs/your-data.md"


def test_fifteen_lines_from_data_to_a_session(tmp_path: Path) -> None:
    make, shell, use = (
        block(PAGE, "python", "np.savez"),
        block(PAGE, "sh", "dnc train"),
        block(PAGE, "python", "Client("),
    )
    lines = [line for line in f"{make}{shell}{use}".splitlines() if line.strip()]
    assert len(lines) == 15

    run_python(make, tmp_path)
    *commands, serve = shell.splitlines()
    assert serve == "dnc serve --model artifact"
    run_shell("\n".join(commands), tmp_path)

    plan = Plan.read(tmp_path / "runs" / "mine")
    assert isinstance(plan.task, DataTask)
    [error, mean, _] = figures(tmp_path / "runs" / "mine" / "CARD.md")
    assert error < 0.5 * mean  # 0.3 where it was written: seeds leave a processor's last bits to chance

    with running(tmp_path / "artifact", tmp_path / "server") as server:
        printed = run_python(use.replace("localhost:8500", server.grpc), tmp_path)
        # It told means of loads about 1000, not of normalised ones.
        assert all(600 < float(number) < 1400 for number in re.findall(r"\d+\.\d+", printed))
        assert len(re.findall(r"\d+\.\d+", printed)) == 2
        run_shell("echo 20.5,1250 | dnc step machine-7", tmp_path, DNC_TARGET=server.grpc)

        part = plan.task.data.held_out
        lengths = part.lengths.tolist()
        squares = []
        with Client(server.grpc) as client:
            for inputs, targets in zip(part.inputs.split(lengths), part.targets.split(lengths), strict=True):
                with client.session() as session:
                    squares.append((session.step(inputs.numpy()) - targets.numpy()) ** 2)
        assert np.concatenate(squares).mean() ** 0.5 == pytest.approx(error, rel=1e-3)


def figures(card: Path) -> list[float]:
    """The numbers of the card's only output."""
    [row] = re.findall(r"^\| y\[0\] \|(.*)\|$", card.read_text(), re.MULTILINE)
    return [float(number) for number in row.split("|")]


def test_the_task_of_ones_own_is_trained(tmp_path: Path) -> None:
    (tmp_path / "my_tasks.py").write_text(block(PAGE, "python", "class Echo"))
    run_shell("dnc train my_tasks:Echo -o runs/echo --task-option length=4 --iterations 5", tmp_path)
    said = run_shell("dnc train my_tasks:Echo --evaluate runs/echo --episodes 100", tmp_path)
    assert said.startswith("as trained, fresh: ")
