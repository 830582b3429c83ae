"""The page before a model of several layers and heads, too large to be shown whole."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from dnc_serve.client.client import Client
from dnc_serve.client.watch.site import MAX_CELLS
from dnc_serve.handler.api.views import thin
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from tests.client.watch.asking import site
from tests.client.watch.test_page import Page
from tests.server_process import ServerProcess

SLOTS, WORD = 96, 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(3)
    dnc = DNC(
        5, 16, num_layers=2, num_hidden_layers=1, nr_cells=SLOTS, cell_size=WORD, read_heads=2, write_heads=2,
        share_memory=False, output_size=4,
    )  # fmt: skip
    export(dnc, folder / "artifact")
    server = ServerProcess(folder / "artifact", folder / "state", code="torchscript")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def page(server: ServerProcess, browser: Chrome) -> Iterator[Page]:
    with site(server.address) as address:
        browser.get_log("browser")
        yield Page(browser, address)
        assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_layers_heads_and_thinned_links(page: Page, server: ServerProcess) -> None:
    with Client(server.address) as client, client.session("deep") as session:
        inputs = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
        session.step(inputs[:3])
        page.open("/session/deep")
        page.until(lambda: page.shows(3))
        for place, value in enumerate(inputs[3].tolist()):
            page.find(f"#numbers [data-at='0 {place}']").clear()
            page.find(f"#numbers [data-at='0 {place}']").send_keys(str(value))
        page.find("#send").click()
        page.until(lambda: page.shows(4))
        outputs = page.until(lambda: page.text("#outputs")).split()
        assert outputs[0] == "4:"
        assert len(outputs) == 5
        dump = session.dump()
    page.find("#layer").send_keys(Keys.ARROW_DOWN)
    page.until(lambda: page.values("memory").tobytes() == dump["memory"][1].tobytes())
    shown = thin(dump["link_matrix"], MAX_CELLS)[1]
    assert shown.shape[1] < SLOTS
    for head in range(2):
        assert page.values(f"links-{head}").tobytes() == shown[head].tobytes()
    page.find("#links-0 canvas").send_keys(Keys.ARROW_RIGHT)
    width = -(-SLOTS // shown.shape[2])
    assert page.text("#links-0 .readout").startswith(f"to slots 0–{width - 1}, from slots 0–{width - 1}: ")
    usage, *weightings = page.values("weightings").reshape(7, SLOTS)
    assert usage.tobytes() == dump["usage_vector"][1].tobytes()
    assert np.stack(weightings[:2]).tobytes() == dump["write_weights"][1].tobytes()
