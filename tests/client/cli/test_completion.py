"""`dnc completion` in the shells themselves: a real TAB where a terminal is enough, else what they would offer."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

from dnc_serve.client.cli import main
from dnc_serve.client.cli.completion import SHELLS
from tests.programs import program
from tests.waiting import shown_until

SET_UP = {
    "bash": "source {file}\n",
    "zsh": "autoload -U compinit; fpath=({folder} $fpath); compinit -u -D\n",
}
BARE = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}


def written(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    program(shell)
    assert main(["completion", shell]) == 0
    file = folder / "_dnc"
    file.write_text(capsys.readouterr().out)
    return file


@pytest.mark.parametrize("shell", SET_UP)
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("dnc comple", b"dnc completion "),
        ("dnc step --lockst", b"--lockstep "),
        ("dnc dump s --plot pict", b"picture.png"),
    ],
)
def test_tab(shell: str, typed: str, completed: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(shell, tmp_path, capsys)
    (tmp_path / "picture.png").touch()
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "PS1": "$ "}
    with subprocess.Popen(
        BARE[shell], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        try:
            os.write(ours, SET_UP[shell].format(file=file, folder=tmp_path).encode() + b"echo set; echo up\n")
            shown_until(ours, b"\nup\r")
            os.write(ours, typed.encode() + b"\t")
            shown_until(ours, completed)
        finally:
            process.kill()
            os.close(ours)


def test_fish_offers_commands_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written("fish", tmp_path, capsys)
    asked = f'source {file}; complete -C "dnc comple"; complete -C "dnc step --lockst"; complete -C "dnc completion "'
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = ["fish", "--no-config", "-c", asked]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    offered = [line.split("\t")[0] for line in said.splitlines()]
    assert offered == ["completion", "--lockstep", *SHELLS]
