"""The page before a model that is no DNC: its state has fields of every dtype, a number, a vector and a matrix."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from dnc_serve.client.client import Client
from dnc_serve.model.export import export
from tests.client.watch.asking import site
from tests.client.watch.test_page import Page, axe
from tests.handler.engine.test_any_model import Ledger, symbols
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("ledger")
    torch.manual_seed(3)
    export(Ledger(), folder / "artifact")
    server = ServerProcess(folder / "artifact", folder / "state")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def address(server: ServerProcess) -> Iterator[str]:
    with site(server.address) as address:
        yield address


@pytest.fixture
def page(address: str, browser: Chrome) -> Iterator[Page]:
    browser.get_log("browser")
    yield Page(browser, address)
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def assert_shown(page: Page, dump: dict[str, np.ndarray]) -> None:
    for name, array in dump.items():
        np.testing.assert_array_equal(page.values(f"field-{name}"), array.astype(np.float32).ravel(), err_msg=name)


def test_every_field_is_shown_now_then_and_over_time(page: Page, client: Client) -> None:
    with client.session("book") as session:
        outputs = session.step(symbols(1, 9))
        session.reset()
        page.open("/session/book")
        page.until(lambda: page.shows(9))
        assert_shown(page, session.dump())
        session.step(symbols(2, 3))
        page.until(lambda: page.shows(12))
        assert_shown(page, session.dump())
        then = session.dump(position=4)
        page.slide_to(4)
        page.until(lambda: page.shows(4))
        assert_shown(page, then)
        page.until(lambda: page.seen("hidden-over-time") == list(range(1, 13)))
        assert page.column("hidden-over-time", 4).tobytes() == then["hidden"].tobytes()
        assert page.column("inputs-over-time", 4).tolist() == symbols(1, 9)[3].tolist()
        assert page.column("outputs-over-time", 4).tobytes() == outputs[3].tobytes()
        assert page.column("seen-over-time", 4).sum() <= then["seen"].sum()
    shapes = page.browser.execute_script(
        "return Object.fromEntries(['counts.0', 'seen', 'recent'].map((name) => {"
        " const {rows, columns} = document.getElementById('field-' + name).heatmap; return [name, [rows, columns]]}))"
    )
    assert shapes == {"counts.0": [1, 1], "seen": [1, 256], "recent": [2, 5]}
    assert "state of" in page.text("#model")
    assert page.browser.find_elements(By.CSS_SELECTOR, "#trace, #pattern, #memory") == []
    assert axe(page.browser)["violations"] == []
    page.find("#reset").click()
    page.until(lambda: "become as in a new session; the rest of its state stays" in page.text("#confirm p"))
    page.find("#confirm button[value=cancel]").click()


def test_two_positions_are_compared_field_by_field(page: Page, client: Client) -> None:
    with client.session("compared") as session:
        session.step(symbols(1, 6))
        now, then = session.dump(["hidden"]), session.dump(["hidden"], position=2)
    page.open("/compare?a=compared&b=compared&pb=2")
    page.until(lambda: "numbers differ" in page.text("#compare-note"))
    np.testing.assert_array_equal(page.values("hidden-0-d"), then["hidden"] - now["hidden"])
    assert page.find("#recent-0-a").is_displayed()
    page.find("input[name=pb]").clear()
    page.find("input[name=pb]").send_keys("6", Keys.ENTER)
    page.until(lambda: page.text("#compare-note") == "They are equal, as float32.")


def test_numbers_are_typed_pasted_and_read_from_files(page: Page, client: Client, tmp_path: Path) -> None:
    with client.session("same") as same, client.session("sent") as session:
        page.open("/session/sent")
        page.until(lambda: page.shows(0))
        cell = page.find("#numbers input")
        cell.clear()
        cell.send_keys("1.5")
        page.find("#send").click()
        page.until(lambda: page.text("#table-note") == 'timestep 1, input 0 is "1.5", expected a number of uint8')
        page.browser.execute_script(
            "const data = new DataTransfer(); data.setData('text', '7\\t8\\n9\\t10\\n');"
            "arguments[0].dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))",
            cell,
        )
        page.find("#slowly").click()
        page.find("#send").click()
        page.until(lambda: page.text("#table-note") == "2 timesteps sent")
        expected = same.step(np.uint8([[7, 8], [9, 10]]))
        assert session.dump()["seen"].nonzero()[0].tolist() == [7, 8, 9, 10]
        assert len(page.text("#outputs").splitlines()) == len(expected)

        np.save(tmp_path / "symbols.npy", symbols(4, 100))
        (tmp_path / "symbols.csv").write_text("1,2\n3,300\n")
        page.find("#file").send_keys(str(tmp_path / "symbols.csv"))
        page.until(lambda: "symbols.csv: 300 as value 1 of timestep 1" in page.text("#table-note"))
        page.find("#file").send_keys(str(tmp_path / "symbols.npy"))
        page.until(lambda: "100 timesteps" in page.text("#table-note"))
        page.find("#send").click()
        page.until(lambda: page.text("#table-note") == "100 timesteps sent")
        same.step(symbols(4, 100))
        assert {name: array.tobytes() for name, array in session.dump().items()} == {
            name: array.tobytes() for name, array in same.dump().items()
        }
    page.browser.get_log("browser")  # the browser itself reports the 400
