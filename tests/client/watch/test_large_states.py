"""The page and the library before a session of 2,048 slots, whose link matrix alone takes 17 MB."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from selenium.webdriver import Chrome

from dnc_serve.client.client import Client
from dnc_serve.client.watch.guard import SECRET_HEADER
from dnc_serve.client.watch.site import MAX_CELLS
from dnc_serve.handler.api.views import thin
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from tests.client.watch.asking import request, site
from tests.client.watch.test_page import Page
from tests.server_process import ServerProcess

SHOWN = ("memory", "usage_vector", "write_weights", "read_weights", "precedence", "link_matrix")
SLOTS, WORD, INPUTS = 2048, 8, 4
# Of a frame or a look: two arrays of at most MAX_CELLS numbers, weightings and gates.
MAX_LOOK_BYTES = 4 * (2 * MAX_CELLS + 5 * SLOTS)
TIMESTEPS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(5)
    export(
        DNC(INPUTS, 16, num_hidden_layers=1, nr_cells=SLOTS, cell_size=WORD, read_heads=1, output_size=3),
        folder / "artifact",
    )
    server = ServerProcess(folder / "artifact", folder / "state", slots=2, host_bytes=1 << 28, code="torchscript")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client, client.session("large") as session:
        for _ in session.stream(list(inputs()[:, None])):
            pass
        yield client


@pytest.fixture(scope="module")
def address(server: ServerProcess) -> Iterator[str]:
    with site(server.address) as address:
        yield address


def inputs() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((TIMESTEPS, INPUTS)).astype(np.float32)


def test_frames_and_looks_are_thinned(client: Client) -> None:
    with client.session("large", create=False) as session:
        frames = session.watch([*SHOWN, "interface"], max_cells=MAX_CELLS)
        frame = next(frames)
        frames.close()
        look = session.look([*SHOWN, "interface"], position=2, max_cells=MAX_CELLS)
        links = session.dump(["link_matrix"])["link_matrix"].reshape(1, 1, SLOTS, SLOTS)
    assert (frame.position, look.position) == (TIMESTEPS, 2)
    for seen in (frame, look):
        assert sum(array.nbytes for array in seen.arrays.values()) <= MAX_LOOK_BYTES
        assert seen.full_shapes["link_matrix"] == (1, 1, SLOTS, SLOTS)
        assert seen.arrays["memory"].any()
        assert seen.arrays["read_modes"].sum() == pytest.approx(1, abs=1e-5)
    assert links.any()
    assert frame.arrays["link_matrix"].tobytes() == thin(links, MAX_CELLS).tobytes()


def test_whole_dumps_are_still_to_be_had(client: Client) -> None:
    with client.session("large", create=False) as session:
        dump = session.dump()
        assert dump["link_matrix"].shape == (1, SLOTS, SLOTS)
        whole = session.look(["link_matrix"], max_cells=SLOTS * SLOTS)
    assert whole.arrays["link_matrix"].tobytes() == dump["link_matrix"].tobytes()


@pytest.mark.parametrize("position", ["", "?position=2"])
def test_what_the_page_is_sent_is_small(address: str, client: Client, position: str) -> None:
    secret = {SECRET_HEADER: address.partition("#secret=")[2].rstrip("/")}
    status, _, message = request(address, f"api/sessions/large/memory{position}", secret)
    assert status == 200
    assert len(message) <= MAX_LOOK_BYTES + 4096


def test_the_page_shows_now_and_then_and_their_difference(browser: Chrome, address: str, client: Client) -> None:
    browser.get_log("browser")
    page = Page(browser, address)
    page.open("/session/large")
    page.until(lambda: page.shows(TIMESTEPS))
    with client.session("large", create=False) as session:
        now, then = session.look(SHOWN, None, MAX_CELLS).arrays, session.look(SHOWN, 2, MAX_CELLS).arrays
        assert page.values("links-0").tobytes() == now["link_matrix"].tobytes()
        page.slide_to(2)
        page.until(lambda: page.shows(2))
        assert page.values("links-0").tobytes() == then["link_matrix"].tobytes()
        assert page.values("memory").tobytes() == then["memory"].tobytes()
        assert len(page.gates()) == 6
        assert not page.find("#past-note").is_displayed()
    page.open("/compare?a=large&b=large&pb=2")
    page.until(lambda: "of the numbers shown differ" in page.text("#compare-note"))
    assert "Too large to be shown whole: links; a cell is the strongest" in page.text("#compare-note")
    difference = page.values("link_matrix-0-d")
    np.testing.assert_array_equal(difference, (then["link_matrix"] - now["link_matrix"]).ravel())
    assert [entry["message"] for entry in browser.get_log("browser")] == []
