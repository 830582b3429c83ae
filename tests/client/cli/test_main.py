"""The command `dnc` in front of a real server."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import dnc_serve
from dnc_serve.client import Client
from dnc_serve.client.arrays import Float32
from dnc_serve.client.cli import main
from dnc_serve.client.cli.main import COMMANDS, installed
from tests.handler.harness import INPUT_SIZE, OUTPUT_SIZE, random_inputs

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def target(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNC_TARGET", address)


def as_csv(values: Float32) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in values.tolist())


def from_csv(text: str) -> Float32:
    return np.loadtxt(io.StringIO(text), np.float32, delimiter=",", ndmin=2)


def dnc(*arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "dnc_serve.client.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env=os.environ, check=False)


def test_help_lists_the_commands(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^    {name}\b", shown, re.MULTILINE) for name in installed())
    assert {"serve", "step", "reset", "dump", "sessions", "demo", "health"} <= set(installed()) <= set(COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["dance"], ["step"], ["step", "x", "--chunk", "0"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: Capture) -> None:
    try:
        code = main(arguments)
    except SystemExit as exc:
        code = int(exc.code or 0)
    assert code == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err


def test_only_what_is_needed_is_imported() -> None:
    watched = (
        "import sys\nfrom dnc_serve.client.cli import main\n"
        "try: main(['step', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'dnc_serve.handler'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", watched], check=True, capture_output=True)


def test_step_from_a_pipe(uninterrupted: Callable[[Float32], Float32]) -> None:
    inputs = random_inputs(1, 150)
    first = dnc("step", "piped", stdin=as_csv(inputs[:100]).encode())
    second = dnc("step", "piped", "-", "--lockstep", "--chunk", "1", stdin=as_csv(inputs[100:]).encode())
    assert (first.returncode, second.returncode) == (0, 0), (first.stderr, second.stderr)
    assert b"now at position 150" in second.stderr
    outputs = from_csv((first.stdout + second.stdout).decode())
    assert outputs.tobytes() == uninterrupted(inputs).tobytes()


def test_step_through_npy(tmp_path: Path, uninterrupted: Callable[[Float32], Float32]) -> None:
    inputs = random_inputs(2, 130)
    np.save(tmp_path / "in.npy", inputs)
    assert main(["step", "npy-file", str(tmp_path / "in.npy"), "-o", str(tmp_path / "out.npy")]) == 0
    assert np.load(tmp_path / "out.npy").tobytes() == uninterrupted(inputs).tobytes()
    piped = dnc("step", "npy-pipe", stdin=(tmp_path / "in.npy").read_bytes())
    assert np.load(io.BytesIO(piped.stdout)).tobytes() == uninterrupted(inputs).tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,1,1,1,1\n1,1,1\n", "in.csv:2: 3 values, expected 5"),
        ("1,1,1,1,1\n\n1,1,x,1,1\n", "in.csv:3: 'x' is not a number"),
        ("1,1,1\n", "in.csv: timesteps of 3 values; the model takes 5"),
        ("1,1,nan,1,1\n", "in.csv:1: 'nan' is not finite"),
        ("1,1,1,1,1\n" * 200 + "1,1,1e39,1,1\n", "in.csv: 1e+39 as value 2 of timestep 200 is not a finite float32"),
        ("", "in.csv: holds no timesteps"),
    ],
)
def test_bad_files_are_1_say_where_and_leave_nothing(
    content: str, message: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "in.csv").write_text(content)
    out = tmp_path / "out.csv"
    for command in (["step", "bad-file", "-o", str(out)], ["record", "bad-file", "-o", str(tmp_path / "a" / "b")]):
        assert main([*command[:2], str(tmp_path / "in.csv"), *command[2:]]) == 1
        assert message in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["in.csv"]
    assert main(["sessions", "--prefix", "bad-file", "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_a_name_that_belies_its_content_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text.npy").write_text("1,1,1,1,1\n")
    assert main(["step", "belied", str(tmp_path / "text.npy")]) == 1
    assert "text.npy: is no .npy file" in capsys.readouterr().err
    with (tmp_path / "array.csv").open("wb") as file:
        np.save(file, random_inputs(1, 3))
    assert main(["step", "belied", str(tmp_path / "array.csv")]) == 1
    assert "array.csv: is a .npy file" in capsys.readouterr().err


def test_a_header_is_no_timestep_and_the_file_may_come_first(tmp_path: Path, capsys: Capture) -> None:
    inputs, bare, headed = random_inputs(8, 3), tmp_path / "bare.csv", tmp_path / "headed.csv"
    bare.write_text(as_csv(inputs))
    headed.write_text("a,b,c,d,e\n" + as_csv(inputs))
    assert main(["step", "bare", str(bare)]) == 0
    plain = capsys.readouterr().out
    assert main(["step", str(headed), "headed"]) == 0
    captured = capsys.readouterr()
    assert captured.out == plain
    assert captured.err.startswith("session headed: 3 timesteps")


def test_options_may_stand_between_arguments(tmp_path: Path, capsys: Capture) -> None:
    assert main(["step", "between", "--chunk", "2", _csv(tmp_path, 3), "-o", str(tmp_path / "out.npy")]) == 0
    assert main(["dump", "between", "memory", "--position", "2", "usage_vector"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["array", "memory", "usage_vector"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["step", "x", "--lock-step"],
            "dnc step: unrecognized arguments: --lock-step (did you mean --lockstep?); see `dnc step --help`\n",
        ),
        (["reset"], "dnc reset: the following arguments are required: SESSION; see `dnc reset --help`\n"),
        (
            ["sessions", "list", "--prefx", "a"],
            "dnc sessions: unrecognized arguments: --prefx a (did you mean --prefix?); see `dnc sessions --help`\n",
        ),
        (["session"], "dnc: there is no command 'session' (did you mean sessions?); see `dnc --help`\n"),
    ],
)
def test_a_typo_is_told_in_one_line(arguments: list[str], message: str, capsys: Capture) -> None:
    try:
        assert main(arguments) == 2
    except SystemExit as exc:
        assert exc.code == 2
    assert capsys.readouterr().err == message


def test_missing_file_and_missing_session(tmp_path: Path, capsys: Capture) -> None:
    assert main(["step", "x", str(tmp_path / "none.csv")]) == 1
    assert "none.csv: No such file or directory; expected a file of timesteps, CSV" in capsys.readouterr().err
    for command in (["reset"], ["dump"], ["fork"], ["delete"], ["record", "-o", str(tmp_path)]):
        assert main([*command, "never-made"]) == 1
        assert "SESSION_NOT_FOUND" in capsys.readouterr().err


def test_reset_experience_comes_before_the_first_timestep(tmp_path: Path, address: str, capsys: Capture) -> None:
    inputs = random_inputs(3, 10)
    (tmp_path / "in.csv").write_text(as_csv(inputs))
    main(["step", "resets", str(tmp_path / "in.csv")])
    capsys.readouterr()
    assert main(["step", "resets", str(tmp_path / "in.csv"), "--reset-experience"]) == 0
    outputs = from_csv(capsys.readouterr().out)
    with Client(address) as client, client.session() as session:
        session.step(inputs)
        session.reset()
        assert outputs.tobytes() == session.step(inputs).tobytes()
    assert main(["reset", "resets", "--scope", "all"]) == 0
    assert capsys.readouterr().out == "session resets at position 20, experience 2\n"


def test_dump(tmp_path: Path, address: str, capsys: Capture) -> None:
    with Client(address) as client, client.session("dumped") as session:
        session.step(random_inputs(4, 5))
        expected = session.dump()
        session.step(random_inputs(5, 5))
    npz, png = tmp_path / "dump.npz", tmp_path / "dump.png"
    assert main(["dump", "dumped", "-o", str(npz), "--plot", str(png), "--position", "5"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(npz), str(png)]
    np.testing.assert_equal(dict(np.load(npz)), expected)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert main(["dump", "dumped", "memory"]) == 0
    assert re.split(r"  +", capsys.readouterr().out.splitlines()[1])[:2] == ["memory", "[N, W] = [12, 6]"]
    assert main(["dump", "dumped"]) == 0
    shapes = dict(re.findall(r"^(\w+) +(\[[A-Z, ]+\] = \[[\d, ]+\])", capsys.readouterr().out, re.MULTILINE))
    assert shapes == {
        "memory": "[N, W] = [12, 6]", "link_matrix": "[N, N] = [12, 12]", "precedence": "[N] = [12]",
        "read_weights": "[R, N] = [2, 12]", "write_weights": "[N] = [12]", "usage_vector": "[N] = [12]",
        "read_vectors": "[V] = [12]", "controller_hidden": "[L, H] = [2, 24]", "controller_cell": "[L, H] = [2, 24]",
    }  # fmt: skip
    assert main(["dump", "dumped", "--plot", "x.jpg"]) == 2


def test_an_interface_takes_a_timestep(tmp_path: Path, address: str, capsys: Capture) -> None:
    npz, png = tmp_path / "dump.npz", tmp_path / "dump.png"
    with Client(address) as client, client.session("unstepped"):
        assert main(["dump", "unstepped", "interface", "-o", str(npz), "--plot", str(png)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"dnc dump: session unstepped at position 0 has nothing to plot: .*\n", captured.err)
    assert not list(tmp_path.iterdir())
    assert main(["dump", "unstepped", "interface", "memory", "--plot", str(png)]) == 0
    assert png.is_file()


def test_sessions_are_listed_copied_and_ended(tmp_path: Path, capsys: Capture) -> None:
    blob = tmp_path / "blob.safetensors"
    main(["step", "cli-a", _csv(tmp_path, 4)])
    assert main(["fork", "cli-a", "cli-b"]) == 0
    assert main(["sessions", "export", "cli-a", str(blob)]) == 0
    assert main(["sessions", "import", "cli-c", str(blob)]) == 0
    capsys.readouterr()
    assert main(["sessions", "--prefix", "cli-", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(info["id"], info["position"]) for info in listed] == [("cli-a", 4), ("cli-b", 4), ("cli-c", 4)]
    assert main(["sessions", "list", "--prefix", "cli-b"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["cli-b", "4", "0"]
    assert main(["delete", "cli-a", "never-made", "cli-b", "cli-c"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"session cli-{name} deleted" for name in "abc"]
    assert "never-made" in captured.err


def test_model(address: str, capsys: Capture) -> None:
    assert main(["model"]) == 0
    shown = capsys.readouterr().out
    with Client(address) as client:
        model = client.model()
    assert f"{model.name}\n" in shown and model.digest in shown
    assert f"float32[{INPUT_SIZE}] → float32[{OUTPUT_SIZE}]\n" in shown
    assert re.search(r"^  memory +float32 \[12, 6\]  experience$", shown, re.MULTILINE)
    assert main(["model", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["digest"], told["inputs"]) == (model.digest, {"shape": [INPUT_SIZE], "dtype": "float32"})


def test_what_is_not_installed_is_told_and_the_rest_is_completed() -> None:
    hidden = "import sys; sys.modules['pydantic'] = None; from dnc_serve.client.cli import main; sys.exit(main({}))"
    serve = [sys.executable, "-c", hidden.format(["serve", "--help"])]
    done = subprocess.run(serve, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("; it needs more: pip install 'dnc-serve[serve]'\n") and done.stderr.count("\n") == 1
    completion = [sys.executable, "-c", hidden.format(["completion", "bash"])]
    assert "--lockstep" in subprocess.run(completion, capture_output=True, text=True, check=True).stdout


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dnc {dnc_serve.__version__}\n"
    assert dnc_serve.__version__ == version("dnc-serve")


def test_health(capsys: Capture) -> None:
    assert main(["health"]) == 0
    assert capsys.readouterr().out == "serving\n"
    assert main(["health", "--target", "127.0.0.1:1"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err


def test_whoever_stops_reading_ends_it_quietly() -> None:
    reader = f"'{sys.executable}' -m dnc_serve.client.cli step headed | head -n 1"
    done = subprocess.run(
        reader, shell=True, input=as_csv(random_inputs(6, 5000)).encode(), capture_output=True, check=False
    )
    assert len(from_csv(done.stdout.decode())[0]) == OUTPUT_SIZE
    assert b"Traceback" not in done.stderr


def _csv(folder: Path, timesteps: int) -> str:
    path = folder / "inputs.csv"
    path.write_text(as_csv(random_inputs(7, timesteps)))
    assert path.read_text().count(",") == timesteps * (INPUT_SIZE - 1)
    return str(path)
