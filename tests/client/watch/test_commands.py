"""`dnc watch` and `dnc record`, as they are run in a terminal."""

import io
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dnc_serve.client.cli.main import main
from dnc_serve.client.client import Client
from dnc_serve.model.tasks.copy import encode
from tests.server_process import ServerProcess
from tests.waiting import PATIENCE_S

INPUTS = encode([[0, 1, 1, 0, 1, 0, 0, 1]] * 5)


def test_watch_gives_its_address_and_ends_with_a_signal(server: ServerProcess) -> None:
    command = [sys.executable, "-m", "dnc_serve.client.cli", "watch", "some", "--no-browser", "--page-port", "0"]
    process = subprocess.Popen([*command, "--target", server.address], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        ready = process.stdout.readline()
        found = re.fullmatch(r"ready page=(http://127\.0\.0\.1:\d+/)#secret=[\w-]{20,}/session/some\n", ready)
        assert found, ready
        with urllib.request.urlopen(found[1], timeout=PATIENCE_S) as page:
            assert b"dnc watch" in page.read()
        process.terminate()
        assert process.wait() == 0
        assert process.stdout.read() == ""


def test_watch_says_that_a_port_is_taken(
    address: str, server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = address.split(":")[2].split("/")[0]
    assert main(["watch", "--no-browser", "--page-port", taken, "--target", server.address]) == 1
    assert taken in capsys.readouterr().err


def test_record_sends_a_chunk_and_keeps_each_timestep(server: ServerProcess, client: Client, tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", INPUTS)
    arguments = ["record", "recorded", str(tmp_path / "inputs.npy"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--target", server.address]) == 0
    with np.load(tmp_path / "out" / "recording.npz") as recording, client.session("recorded", create=False) as session:
        assert recording["positions"].tolist() == [1, 2, 3, 4, 5, 6]
        np.testing.assert_array_equal(recording["inputs"], INPUTS)
        assert recording["outputs"].shape == (6, 8)
        assert recording["memory"].shape == (6, 1, 64, 16)
        for position in (2, 6):
            dump = session.dump(position=position)
            for name in ("memory", "link_matrix", "read_weights", "usage_vector"):
                np.testing.assert_allclose(recording[name][position - 1][0], dump[name], atol=1e-5)
    with Image.open(tmp_path / "out" / "recording.gif") as animation:
        assert animation.n_frames == 6


def test_record_looks_up_the_past_and_changes_nothing(server: ServerProcess, client: Client, tmp_path: Path) -> None:
    with client.session("past") as session:
        session.step(INPUTS)
        then = session.dump(position=4)
        arguments = ["record", "past", "--last", "3", "--output", str(tmp_path), "--target", server.address]
        assert main(arguments) == 0
        assert session.info().position == 6
    with np.load(tmp_path / "recording.npz") as recording:
        assert recording["positions"].tolist() == [4, 5, 6]
        np.testing.assert_array_equal(recording["memory"][0, 0], then["memory"])
        assert "inputs" not in recording


def test_record_refuses_what_it_cannot_do(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = ["--output", str(tmp_path / "out"), "--target", server.address]
    assert main(["record", "nobody", *connection]) == 1
    assert "nobody" in capsys.readouterr().err
    assert main(["record", "some", str(tmp_path / "missing.csv"), *connection]) == 1
    assert "missing.csv" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b""))))
    assert main(["record", "some", "-", *connection]) == 1
    assert "no timesteps" in capsys.readouterr().err
