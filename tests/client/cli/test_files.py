"""A command that fails leaves nothing, and says whose fault it was: no session, no file, no folder, no torn output."""

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.client import Client
from dnc_serve.client.cli import main
from tests.handler.harness import INPUT_SIZE, random_inputs

Capture = pytest.CaptureFixture[str]
ROW = ",".join(["1"] * INPUT_SIZE) + "\n"


@pytest.fixture(autouse=True)
def target(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DNC_TARGET", address)
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> int:
    """The exit code, be it returned or raised."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as exc:
        return int(exc.code or 0)


def everything(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def sessions(address: str) -> list[str]:
    with Client(address) as client:
        return [info.id for info in client.sessions()]


NAN, FLAT, WORDS = "nan.npy", "flat.npy", "words.npy"
WRONG_INPUTS = ("narrow.csv", "none.csv", ".", NAN, FLAT, WORDS, "text.toml", "later.csv", "empty.csv")
FAILING = [
    *([command, "x", wrong, "-o", "new"] for command in ("step", "record") for wrong in WRONG_INPUTS),
    ["step", "x", "good.csv", "-o", "no-folder/out.csv"],
    ["step", "x", "good.csv", "-o", "."],
    ["step", "x", "good.csv", "--chunk", "0"],
    ["step", "x", "good.csv", "-o", "new", "--target", "127.0.0.1:1", "--connect-timeout", "0.1"],
    ["step", "bad id", "good.csv", "-o", "new"],
    ["record", "x", "good.csv", "-o", "good.csv"],
    ["record", "never-made", "-o", "a/b/c"],
    ["dump", "never-made", "-o", "new.npz", "--plot", "new.png"],
    ["fork", "never-made", "x"],
    ["sessions", "export", "never-made", "new.safetensors"],
    ["sessions", "import", "x", "none.safetensors"],
    ["sessions", "import", "x", "text.toml"],
    ["sessions", "import", "x", "."],
    ["token", "ward", "--file", "no-folder/tokens.toml"],
    ["token", "ward", "--file", "text.toml"],
    ["token", "ward", "--file", "tokens.toml", "--days", "0"],
    ["token", "ward", "--file", "tokens.toml", "--days", "9999999999"],
    ["token", "ward", "--file", "tokens.toml", "--max-sessions", "0"],
    ["token", "ward", "--file", "tokens.toml", "--max-state-bytes", "-1"],
    ["token", "ward", "--file", "tokens.toml", "--max-timesteps-per-second", "nan"],
    ["token", "a name", "--file", "tokens.toml"],
    ["export", "none", "-o", "new"],
    ["export", "good.csv", "-o", "new"],
    ["export", ".", "-o", "new"],
    ["export", "copy", "--nr-cells", "0", "-o", "new"],
    ["export", "copy", "-o", "good.csv"],
    ["archive", "none", "-o", "new/x.mar"],
    ["archive", "copy", "-o", "."],
    ["train", "copy", "--png", "new", "--resume", "none"],
    ["train", "copy", "--png", "new", "-o", "good.csv/run"],
    ["train", "copy", "--png", "new", "--lr", "-1", "-o", "run"],
    ["train", "copy", "--tensorboard", "new", "--task-option", "nonsense=1", "-o", "run"],
    ["train", "copy", "--device", "cuda:77", "-o", "run"],
    ["train", "copy", "--plot", "new.png", "none"],
    ["train", "copy", "--evaluate", "none"],
    ["demo", "graph", "--map", "none.csv", "--state-dir", "state/x"],
    ["demo", "graph", "--map", "narrow.csv", "--state-dir", "state/x"],
    ["demo", "graph", "--ask", "Mill: red", "--state-dir", "state/x"],
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What the commands above name, and what they don't."""
    (tmp_path / "good.csv").write_text(ROW)
    (tmp_path / "narrow.csv").write_text("1,2\n")
    (tmp_path / "later.csv").write_text(ROW * 300 + ROW.replace("1", "one", 1))
    (tmp_path / "empty.csv").write_text("\n\n")
    (tmp_path / "text.toml").write_text("no = toml = at all\n")
    np.save(tmp_path / NAN, np.full((3, INPUT_SIZE), np.nan))
    np.save(tmp_path / FLAT, np.zeros(INPUT_SIZE))
    np.save(tmp_path / WORDS, np.array([["a"] * INPUT_SIZE]))
    return tmp_path


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["sessions", "import", "x", "none"], "none: No such file or directory; expected what `dnc sessions export`"),
        (["token", "x", "--file", "no/none"], "no/none: No such file or directory; expected a file of tokens"),
        (["demo", "graph", "--map", "none"], "none: No such file or directory; expected a CSV file of from,line,to"),
        (["sessions", "--token-file", "none"], "--token-file is 'none': No such file or directory; expected a file"),
        (["sessions", "--tls-ca", "none"], "ca is 'none'; expected a PEM file with certificates (No such file"),
        (["health", "--tls-certificate", "none", "--tls-key", "x"], "certificate is 'none' and key 'x'; expected PEM"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_what_was_expected(
    command: list[str], named: str, capsys: Capture
) -> None:
    assert run(*command) in (1, 2)
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("command", FAILING, ids=" ".join)
def test_a_failed_command_leaves_nothing(command: list[str], files: Path, address: str, capsys: Capture) -> None:
    before = everything(files), sessions(address)
    assert run(*command) in (1, 2)
    assert (everything(files), sessions(address)) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("dnc")
    assert "[Errno" not in line


def test_a_wrong_pipe_makes_no_session_either(address: str) -> None:
    command = [sys.executable, "-m", "dnc_serve.client.cli", "step", "piped-wrong", "--chunk", "2"]
    done = subprocess.run(command, input="1,2\n1,2\n", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dnc step: standard input: timesteps of 2 values; the model takes 5\n"
    assert "piped-wrong" not in sessions(address)


@pytest.mark.parametrize("name", ["out.csv", "out.npy"])
def test_what_was_applied_before_a_failure_is_written(name: str, address: str, tmp_path: Path) -> None:
    """Of a pipe only the first chunk is known beforehand."""
    rows = [",".join(map(str, row)) for row in random_inputs(1, 6).tolist()]
    (tmp_path / name).write_text("what was there before")
    command = [sys.executable, "-m", "dnc_serve.client.cli", "step", f"half-{name}", "--chunk", "2", "-o", name]
    text = "\n".join([*rows, "no,number\n"])
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "standard input:7: 'no' is not a number" in done.stderr
    outputs = np.load(name) if name.endswith("npy") else np.loadtxt(name, delimiter=",", ndmin=2)
    with Client(address) as client:
        assert client.session(f"half-{name}", create=False).position == len(outputs) > 0


def test_an_output_may_be_a_link_or_a_device(files: Path, address: str) -> None:
    (files / "elsewhere").mkdir()
    for name, command in (
        ("out.csv", ["step", "linked", "good.csv", "-o"]),
        ("dump.npz", ["dump", "linked", "-o"]),
        ("blob", ["sessions", "export", "linked"]),
    ):
        (files / name).symlink_to(files / "elsewhere" / name)
        assert run(*command, name) == 0
        assert (files / name).is_symlink()
        assert (files / "elsewhere" / name).stat().st_size > 10
        assert run(*command, "/dev/null") == 0
    assert not Path("/dev/null").is_file()
    assert sorted(path.name for path in (files / "elsewhere").iterdir()) == ["blob", "dump.npz", "out.csv"]


def test_an_export_replaces_another(tmp_path: Path, capsys: Capture) -> None:
    assert run("export", "copy", "-o", "new") == 0
    assert run("export", "copy", "-o", "new", "--nr-cells", 80) == 0
    assert json.loads((tmp_path / "new" / "manifest.json").read_text())["config"]["nr_cells"] == 80
    names = ["config.json", "manifest.json", "model.pt", "program.pt2", "weights.safetensors"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert run("export", "none") == 2
    assert capsys.readouterr().err == (
        "dnc export: none doesn't exist; expected a training run's folder, a bundled model (copy, recall, graph, "
        "traversal), or module:NAME\n"
    )


def test_tokens_are_added_to_a_file_of_tokens(tmp_path: Path, capsys: Capture) -> None:
    for name in ("one", "other"):
        assert run("token", name, "--file", "tokens.toml", "--days", 3, "--max-sessions", 2) == 0
    tokens = capsys.readouterr().out.split()
    entries = tomllib.loads((tmp_path / "tokens.toml").read_text())["token"]
    assert [entry["name"] for entry in entries] == ["one", "other"]
    assert [entry["sha256"] for entry in entries] == [hashlib.sha256(token.encode()).hexdigest() for token in tokens]


# Empty values, as of a shell's variable that isn't set.


@pytest.mark.parametrize(
    "command",
    [
        ["step", "x", ""],
        ["step", "x", "good.csv", "-o", ""],
        ["step", "x", "good.csv", "--target", ""],
        ["step", "x", "good.csv", "--token-file", ""],
        ["step", "x", "good.csv", "--tls-ca", ""],
        ["step", "x", "good.csv", "--tls-certificate", " "],
        ["step", "x", "good.csv", "--tls-key", ""],
        ["record", "x", "good.csv", "-o", ""],
        ["dump", "x", "--plot", ""],
        ["dump", "x", "-o", ""],
        ["sessions", "export", "x", ""],
        ["sessions", "import", "x", ""],
        ["token", "x", "--file", ""],
        ["export", ""],
        ["export", "copy", "-o", ""],
        ["archive", "", "-o", "x.mar"],
        ["archive", "copy", "-o", ""],
        ["train", "copy", "-o", ""],
        ["train", "copy", "--resume", ""],
        ["train", "copy", "--png", ""],
        ["demo", "graph", "--state-dir", ""],
        ["demo", "graph", "--map", ""],
        ["serve", "--state-dir", ""],
        ["serve", "--tokens", ""],
        ["serve", "--config", ""],
        ["doctor", "--state-dir", ""],
    ],
    ids=" ".join,
)
def test_an_empty_value_is_refused(command: list[str], files: Path, address: str, capsys: Capture) -> None:
    before = everything(files), sessions(address)
    assert run(*command) == 2 or command[0] == "doctor"
    assert (everything(files), sessions(address)) == before
    captured = capsys.readouterr()
    assert "''" in captured.err + captured.out or "' '" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("name", ["DNC_TARGET", "DNC_TOKEN"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_variable_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv(name, value)
    for command in (["sessions"], ["health"], ["dump", "x"], ["watch", "--no-browser"]):
        assert run(*command) == 2
        assert capsys.readouterr().err.startswith(f"dnc: {name} is {value!r}; expected ")


def test_an_empty_file_of_a_token_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "token").write_text("\n")
    assert run("sessions", "--token-file", "token") == 2
    assert capsys.readouterr().err == "dnc: --token-file is 'token', which is empty; expected a bearer token in it\n"
