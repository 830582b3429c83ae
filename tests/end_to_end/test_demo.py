"""`dnc demo`: what one process tells a session, another one is answered; each against servers that it starts itself."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from torch import nn

from dnc_serve.client import TLS, Client
from dnc_serve.client.cli.demos import underground
from dnc_serve.client.cli.demos.graph import EXAMPLE, read_map
from dnc_serve.client.cli.main import main
from dnc_serve.model import export
from tests.end_to_end.servers import Server, running

TOKEN = "a-token-of-the-test"
MAP = """\
from,line,to
North,red,East
East,red,South
South,red,West
West,red,North

North,blue,South
"South",blue,  Old Town
Old Town,red,Port
Port,red,North
Port,green,East
East,green,West
West,green,Port
Old Town,green,South
"""


def demo(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dnc_serve.client.cli", "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def processes(said: str) -> set[str]:
    return set(re.findall(r"process (\d+) ", said))


def secured(folder: Path) -> tuple[list[str], list[str], TLS]:
    """A server's flags for TLS and tokens, a command's flags for the same, its token last, and a client's TLS."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "server.key")
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    (folder / "tokens.toml").write_text(f'[[token]]\nname = "ward-3"\nsha256 = "{digest}"\n')
    (folder / "token").write_text(f"{TOKEN}\n")
    server = ["--tls-certificate", folder / "server.pem", "--tls-key", folder / "server.key"]
    server += ["--tokens", folder / "tokens.toml"]
    command = ["--tls-ca", folder / "ca.pem", "--token-file", folder / "token"]
    return [*map(str, server)], [*map(str, command)], TLS(ca=folder / "ca.pem")


@pytest.fixture
def map_file(tmp_path: Path) -> Path:
    path = tmp_path / "map.csv"
    path.write_text(MAP)
    return path


def test_copy_is_the_default(runtime: str) -> None:
    shown = demo("--length", 20, "--seed", 3, "--runtime", runtime)
    assert shown.returncode == 0, shown.stderr
    assert "wrong bits: 0 of 160" in shown.stdout
    assert len(processes(shown.stdout)) == 2
    rows = re.findall(r"^([█·]{8}) +([█·]{8})$", shown.stdout, re.MULTILINE)
    assert len(rows) == 20
    assert all(written == read for written, read in rows)
    assert "p99" in shown.stdout


def test_any_models_session_goes_on_after_a_crash(tmp_path: Path) -> None:
    export(nn.GRU(3, 4), tmp_path / "artifact")
    shown = demo("crash", "--model", tmp_path / "artifact", "--runtime", "plain")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^hidden +float32 +\[1, 4\] +32$", shown.stdout, re.MULTILINE)
    assert "the same, bit for bit" in shown.stdout


def test_recall(tmp_path: Path) -> None:
    picture = tmp_path / "recall.png"
    shown = demo("recall", "--pairs", 10, "--seed", 4, "--plot", picture)
    assert shown.returncode == 0, shown.stderr
    assert "wrong values: 0 of 10" in shown.stdout
    assert len(processes(shown.stderr)) == 2
    rows = re.findall(r"^([█·]{8}) +([█·]{8}) +([█·]{8}) +(\d+) +(\d+)$", shown.stdout, re.MULTILINE)
    assert len({asked for asked, *_ in rows}) == 10
    for _, answered, truth, written, read in rows:
        assert (answered, written) == (truth, read)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_map_outlives_the_server_that_was_told(map_file: Path, tmp_path: Path) -> None:
    state, picture = tmp_path / "kept", tmp_path / "graph.png"
    told = demo("graph", "--map", map_file, "--state-dir", state)
    assert told.returncode == 0, told.stderr
    assert "12 triples" in told.stderr
    map_file.unlink()

    ask = ("--ask", "North: blue, blue, red, red", "--ask", "West: blue", "--plot", picture)
    asked = demo("graph", "--state-dir", state, *ask)
    assert asked.returncode == 0, asked.stderr
    cells = [re.split(r" {2,}", line) for line in asked.stdout.splitlines()]
    assert cells[2][:3] == ["blue", "South", "South"]
    assert cells[3][:3] == ["blue", "Old Town", "Old Town"]
    assert cells[3][4] == "South blue Old Town"
    assert cells[4][:3] == ["red", "Port", "Port"]
    assert cells[5][:3] == ["red", "North", "North"]
    assert "(no such way)" in asked.stdout
    assert "wrong stations: 0 of 4" in asked.stdout
    assert not processes(told.stderr) & processes(asked.stderr)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_underground_is_told_once_and_asked_after_a_restart() -> None:
    shown = demo("underground", "--runtime", "plain")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "told session 'demo' 122 triples of 20 stations" in shown.stdout
    assert len(processes(shown.stdout)) == 2 and shown.stderr.count("dnc serve is ready at") == 2
    assert re.search(r"^Circle west +Farringdon +Farringdon$", shown.stdout, re.MULTILINE)
    assert "wrong stations: 0 of 13" in shown.stdout
    drawn = shown.stdout.partition("from Victoria")[0]
    assert [f"{number} {name}" in drawn for number, name in enumerate(("Paddington", "Baker Street", "Oxford Circus"))]


def test_a_route_is_drawn_in_the_order_of_its_stations() -> None:
    assert {station for row in underground_rows() for station in (row[0], row[2])} == set(underground.PLACES)
    lines = underground.drawn(["Bank", "Moorgate", "Bank", "77"]).splitlines()
    assert lines[9].count("●") == 1 and lines[9].endswith("0,2 Bank")
    assert lines[6].count("●") == 1 and lines[6].endswith("1 Moorgate")
    assert lines[7][57] == lines[8][57] == "·"
    assert sum(line.count("○") for line in lines) == len(underground.PLACES) - 2


def underground_rows() -> list[list[str]]:
    return [line.split(",") for line in underground.MAP.read_text().splitlines()[1:]]


def test_a_server_that_runs_already(
    tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("graph")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    flags, client_flags, tls = secured(folder)
    with (
        running("graph", folder, *flags) as graph_server,
        Client(graph_server.grpc, token=TOKEN, tls=tls) as client,
    ):
        target = ["--target", graph_server.grpc, *client_flags]
        assert main(["demo", "graph", *target[:-2]]) == 1  # without the token
        assert "UNAUTHENTICATED" in capfd.readouterr().err
        assert main(["demo", "graph", *target]) == 0
        example = capfd.readouterr()
        assert "wrong stations: 0 of 10" in example.out
        assert len(processes(example.err)) == 2

        # Told again, it is the same session; what was cut short goes on; what was asked of it left no trace.
        [told] = client.sessions("demo-map-")
        client.session(told.id).delete()
        begun = client.session(told.id)
        begun.step(read_map(EXAMPLE).encode()[:5])
        assert main(["demo", "graph", *target, "--map", str(EXAMPLE), "--ask", "Mill: blue, blue"]) == 0
        [session] = client.sessions()
        assert (session.id, session.position, session.incarnation) == (told.id, 18, begun.incarnation)

        # Ended, it can be told anew.
        begun.resync()
        begun.delete()
        assert main(["demo", "graph", *target, "--ask", "Mill: blue"]) == 1
        assert "tell the map again with --map FILE" in capfd.readouterr().err
        assert main(["demo", "graph", *target, "--map", str(EXAMPLE)]) == 0
        assert main(["demo", "graph", *target, "--ask", "Mill: blue"]) == 0

        # Somebody else's timestep makes it another memory than that of the map.
        client.session(told.id).step(read_map(EXAMPLE).encode()[:1])
        assert main(["demo", "graph", *target, "--ask", "Mill: blue"]) == 1
        assert "was used for something else" in capfd.readouterr().err


def test_a_server_of_another_model_is_refused_and_gets_no_session(
    map_file: Path, tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["demo", "graph", "--map", str(map_file), "--state-dir", str(tmp_path), "--target", server.grpc]
    assert main(command) == 1
    assert "is no graph model" in capfd.readouterr().err
    with Client(server.grpc) as client:
        assert not list(client.sessions("demo-map-"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from,line,to\n\nA,red,B\nA,red\n", "map.csv:4: 'A, red'; expected from, line, to"),
        ("A,red,B\nB,red,C\nA,red,C\n", "map.csv:3: red leads from A to C, and to B before"),
        ("".join(f"s{n},red,s{n + 1}\n" for n in range(21)), "map.csv: 21 triples; the model takes at most 20"),
        ("A,r,B\nA,g,B\nA,b,B\nA,y,B\n", "map.csv:4: 'y' is one line more; the model takes at most 3"),
        ('A,red,"B\n', "map.csv:1: unexpected end of data"),
        ("From,Line,To\n", "map.csv: no map; expected rows of from, line, to"),
    ],
)
def test_a_wrong_map(text: str, expected: str, map_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    map_file.write_text(text)
    assert main(["demo", "graph", "--map", str(map_file), "--state-dir", str(map_file.parent)]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("journey", "expected"),
    [
        ("Nowhere: red", "station is 'Nowhere'; expected one of North, East"),
        ("North: violet", "line is 'violet'; expected one of red, blue, green"),
        ("North red", "--ask is 'North red'; expected \"STATION: LINE, LINE, …\""),
        ("North:", "--ask is 'North:'; expected \"STATION: LINE, LINE, …\""),
    ],
)
def test_a_wrong_journey(journey: str, expected: str, map_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "graph", "--map", str(map_file), "--ask", journey, "--state-dir", str(map_file.parent)]
    assert main(command) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["graph", "--ask", "North: red"], 1, "tell one with --map FILE"),
        (["graph", "--map", "missing.csv"], 1, "missing.csv"),
        (["--ask", "North: red"], 2, "--ask is no flag of dnc demo copy"),
        (["--target", "localhost:1"], 2, "--target is no flag of dnc demo copy"),
        (["graph", "--tls"], 2, "--tls says how to reach a server; expected --target too"),
        (["--length", "21"], 2, "--length is 21; expected 1 to 20"),
        (["recall", "--pairs", "0"], 2, "--pairs is 0; expected 1 to 10"),
        (
            ["underground", "--ask", "Bank: Northern north, Jubilee east"],
            2,
            "line is 'Jubilee east'; expected one that leaves Moorgate: Circle",
        ),
    ],
)
def test_wrong_usage(
    arguments: list[str], code: int, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["demo", *arguments]) == code
    assert expected in capsys.readouterr().err
