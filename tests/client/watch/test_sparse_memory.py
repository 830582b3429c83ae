"""What the page, a dump's picture and a recording show of a sparse memory: its fields, as of any model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from selenium.webdriver import Chrome

from dnc_serve.client.axes import described
from dnc_serve.client.cli.main import main
from dnc_serve.client.client import Client
from dnc_serve.model import DNC, export
from tests.client.watch.asking import site
from tests.client.watch.test_page import Page
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("sparse")
    torch.manual_seed(3)
    dnc = DNC(5, 8, num_layers=2, num_hidden_layers=1, nr_cells=12, cell_size=4, memory="sparse_links", sparse_reads=2)
    export(dnc, folder / "artifact")
    server = ServerProcess(folder / "artifact", folder / "state")
    server.start()
    yield server
    server.kill()


def test_the_page_shows_each_field_now_and_over_time(server: ServerProcess, browser: Chrome) -> None:
    with site(server.address) as address, Client(server.address) as client, client.session("seen") as session:
        browser.get_log("browser")
        page = Page(browser, address)
        session.step(np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32))
        page.open("/session/seen")
        page.until(lambda: page.shows(6))
        dump = session.dump()
        for field in client.model().state:
            figures = [f"field-{field.name}-{part}" for part in range(field.parts)]  # one for each layer
            shown = [page.values(figure) for figure in (figures if field.parts > 1 else [f"field-{field.name}"])]
            np.testing.assert_array_equal(
                np.concatenate(shown), dump[field.name].astype(np.float32).ravel(), field.name
            )
        page.until(lambda: page.seen("sparse_read_weights-over-time") == list(range(1, 7)))
        assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_it_is_dumped_drawn_and_recorded(server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    at = ["--target", server.address]
    inputs = tmp_path / "inputs.npy"
    np.save(inputs, np.ones((3, 5), np.float32))
    assert main(["record", "r", str(inputs), "--output", str(tmp_path / "recording"), *at]) == 0
    with np.load(tmp_path / "recording" / "recording.npz") as recorded:
        assert recorded["next_slots"].shape == (3, 2, 12, 8)
        assert recorded["time"][:, -1].ravel().tolist() == [2, 4, 6], "two layers share the memory"
    assert main(["dump", "r", "--plot", str(tmp_path / "dump.png"), *at]) == 0
    capsys.readouterr()
    assert main(["dump", "r", *at]) == 0
    assert "[N, Q] = [12, 8]" in capsys.readouterr().out


def test_axes_have_letters() -> None:
    assert described("sparse_read_weights", (2, 4), {"nr_cells": 9}) == "[R, S] = [2, 4]"
