"""The page in a real Chromium, before a real server."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from dnc_serve.client.client import Client
from dnc_serve.model.tasks.copy import encode, recall_inputs
from tests.server_process import ServerProcess

WAIT_SECONDS = 120
NOT_FROM_THE_PAGE = ("ERR_CONNECTION", "status of 503", "status of 504")  # while the server was killed


def episode(seed: int, length: int = 6) -> Any:
    """Inputs [2n + 1, 10] that tell the copy model something and ask for it back."""
    bits = np.random.default_rng(seed).integers(0, 2, (length, 8))
    return np.concatenate([encode(bits), recall_inputs(length)])


class Page:
    """What a reader does and sees."""

    def __init__(self, browser: Chrome, address: str) -> None:
        self.browser = browser
        self._address, _, secret = address.partition("#")
        self._secret = secret.rstrip("/")

    def open(self, view: str = "/") -> None:
        self.browser.get("about:blank")
        self.browser.get(f"{self._address}#{self._secret}{view}")

    def find(self, selector: str) -> WebElement:
        return self.until(lambda: self.browser.find_element(By.CSS_SELECTOR, selector))

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, WAIT_SECONDS, 0.05, ignored_exceptions=[Exception]).until(
            lambda _: condition()
        )

    def values(self, figure: str) -> Any:
        """The numbers of a heatmap, as the page holds them."""
        script = f"return Array.from(document.getElementById('{figure}').heatmap.values)"
        return np.array(self.browser.execute_script(script), np.float32)

    def gates(self) -> list[float]:
        """The gates and read modes of the moment that is shown."""
        script = "return Array.from(document.querySelectorAll('#gates-shown meter'), (bar) => bar.value)"
        gates: list[float] = self.browser.execute_script(script)
        return gates

    def shows(self, position: int) -> bool:
        return bool(self.find("#maps").get_attribute("data-position") == str(position))

    def slide_to(self, position: int) -> None:
        self.browser.execute_script(
            "const slider = document.getElementById('slider'); slider.value = arguments[0];"
            "slider.dispatchEvent(new Event('input'))",
            position,
        )

    def confirm(self, answer: str | None = None) -> None:
        self.until(lambda: self.find("#confirm[open]"))
        if answer is not None:
            field = self.find("#confirm input")
            field.clear()
            field.send_keys(answer)
        self.find("#confirm button[value=ok]").click()


@pytest.fixture
def page(browser: Chrome, address: str) -> Iterator[Page]:
    browser.get_log("browser")
    yield Page(browser, address)
    complaints = [
        entry["message"]
        for entry in browser.get_log("browser")
        if not any(known in entry["message"] for known in NOT_FROM_THE_PAGE)
    ]
    assert complaints == []


def test_the_list_shows_sessions_and_leads_to_one(page: Page, client: Client) -> None:
    with client.session("listed") as session:
        session.step(episode(0))
    page.open()
    row = page.until(lambda: page.find("#sessions tr").text)
    assert "listed" in row
    assert " 13 0 slot" in row
    page.find("#sessions a").send_keys(Keys.ENTER)
    page.until(lambda: page.shows(13))
    assert page.text("#session-id") == "listed"
    assert page.text("#connection") == "connected"


def test_the_secret_does_not_stay_in_the_address(page: Page) -> None:
    page.open()
    page.find("#new-session")
    assert "secret" not in page.browser.current_url


def test_what_a_client_streams_is_shown_as_the_dump_has_it(page: Page, client: Client) -> None:
    with client.session("streamed") as session:
        page.open("/session/streamed")
        page.until(lambda: page.shows(0))
        for timestep in episode(1):
            session.step(timestep[None])
        page.until(lambda: page.shows(13))
        dump = session.dump()
    assert page.values("memory").tobytes() == dump["memory"].tobytes()
    assert page.values("links-0").tobytes() == dump["link_matrix"].tobytes()
    usage, written, precedence, read = page.values("weightings").reshape(4, -1)
    assert usage.tobytes() == dump["usage_vector"].tobytes()
    assert written.tobytes() == dump["write_weights"].tobytes()
    assert precedence.tobytes() == dump["precedence"].tobytes()
    assert read.tobytes() == dump["read_weights"].tobytes()
    strip = page.values("read-0").reshape(64, -1)
    assert strip[:, -1].tobytes() == dump["read_weights"].tobytes()
    gates = page.values("gates").reshape(6, -1)[:, -1]
    assert np.all((gates >= 0) & (gates <= 1))
    assert gates[3:].sum() == pytest.approx(1, abs=1e-5)  # the read modes


def test_the_picture_is_painted(page: Page, client: Client) -> None:
    with client.session("painted") as session:
        session.step(episode(2))
    page.open("/session/painted")
    page.until(lambda: page.shows(13))
    script = (
        "const canvas = document.querySelector('#memory canvas');"
        "return new Set(new Uint32Array(canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"
    )
    assert page.browser.execute_script(script) > 20
    assert page.text("#order").split()[0].isdecimal()


def test_values_under_the_arrow_keys(page: Page, client: Client) -> None:
    with client.session("keys") as session:
        session.step(episode(3))
        memory = session.dump(["memory"])["memory"]
    page.open("/session/keys")
    page.until(lambda: page.shows(13))
    page.find("#memory canvas").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    said, value = page.text("#memory .readout").split(": ")
    assert said == "slot 1, word element 1"
    assert float(value) == pytest.approx(float(memory[1, 1]), abs=1e-3)


def test_the_slider_shows_an_earlier_state_bit_for_bit(page: Page, client: Client) -> None:
    with client.session("slider") as session:
        session.step(episode(4))
        now, then = session.dump(), session.dump(position=5)
        asked_now, asked_then = session.dump(["interface"]), session.dump(["interface"], position=5)
    page.open("/session/slider")
    page.until(lambda: page.shows(13))
    assert page.gates() == gates_and_modes(asked_now)
    page.slide_to(5)
    page.until(lambda: page.shows(5))
    assert page.gates() == gates_and_modes(asked_then) != gates_and_modes(asked_now)
    assert page.values("memory").tobytes() == then["memory"].tobytes()
    assert page.values("links-0").tobytes() == then["link_matrix"].tobytes()
    assert page.text("#shown") == "5 of 13"
    page.find("#live").click()
    page.until(lambda: page.shows(13))
    assert page.values("memory").tobytes() == now["memory"].tobytes()


def gates_and_modes(interface: dict[str, Any]) -> list[float]:
    names = ("write_gates", "allocation_gates", "free_gates", "read_modes")
    return [float(value) for name in names for value in interface[name].ravel()]


def test_where_nothing_was_asked_of_memory_the_page_says_so(page: Page, client: Client) -> None:
    with client.session("unasked") as session:
        page.open("/session/unasked")
        page.until(lambda: page.shows(0))
        assert page.text("#gates-shown").endswith("No timestep has led here since all was new.")
        session.step(episode(10))
        page.until(lambda: page.shows(13))
        assert len(page.gates()) == 6
    page.slide_to(0)
    page.until(lambda: page.shows(0))
    assert page.gates() == []
    assert page.text("#gates-shown").endswith("No timestep has led here since all was new.")


def test_strips_are_true_to_time(page: Page, client: Client) -> None:
    inputs = episode(11)
    with client.session("strips") as session:
        page.open("/session/strips")
        page.until(lambda: page.shows(0))
        for position in (1, 2, 3):
            session.step(inputs[position - 1 : position])
            page.until(lambda position=position: page.shows(position))  # type: ignore[misc]
        session.step(inputs[3:10])
        page.until(lambda: page.shows(10))
        at = {position: session.dump(["read_weights"], position)["read_weights"][0] for position in (2, 3, 10)}
        strip = page.values("read-0").reshape(64, -1)
        assert strip[:, -1].tobytes() == at[10].tobytes()
        assert strip[:, -8].tobytes() == at[3].tobytes()
        assert strip[:, -9].tobytes() == at[2].tobytes()
        assert np.isnan(strip[:, -7:-1]).all(), "positions 4 to 9 were not seen"
        page.find("#read-0 canvas").send_keys(Keys.ARROW_RIGHT)  # the first column
        assert "before the first position" in page.text("#read-0 .readout")
        # What comes faster than frames do gets columns that stand for several positions.
        for start in range(10, 910, 45):
            session.step(np.tile(inputs, (4, 1))[:45])
            page.until(lambda position=start + 45: page.shows(position))  # type: ignore[misc]
    assert "50 positions a column" in page.text("#read-0 .axis.columns")
    strip = page.values("read-0").reshape(64, -1)
    assert not np.isnan(strip[:, -17:]).any()
    assert np.isnan(strip[:, :-19]).all(), "the session has had 910 timesteps only"


def test_a_reset_empties_the_picture(page: Page, client: Client) -> None:
    with client.session("emptied") as session:
        session.step(episode(5))
    page.open("/session/emptied")
    page.until(lambda: page.values("memory").any())
    page.find("#reset").click()
    page.find("#confirm button[value=cancel]").click()
    assert page.text("#experience") == "0"
    page.find("#reset").click()
    page.confirm()
    page.until(lambda: page.text("#experience") == "1" and not page.values("memory").any())
    assert not page.values("links-0").any()
    with client.session("emptied") as session:
        assert session.experience == 1


def test_a_fork_is_compared_with_its_source(page: Page, client: Client) -> None:
    with client.session("source") as session:
        session.step(episode(6))
        then, now = session.dump(position=5), session.dump()
    page.open("/session/source")
    page.until(lambda: page.shows(13))
    page.slide_to(5)
    page.until(lambda: page.shows(5))
    page.find("#fork").click()
    page.confirm("what-if")
    page.until(lambda: page.values("memory-0-d").any())
    assert page.values("memory-0-a").tobytes() == now["memory"].tobytes()
    assert page.values("memory-0-b").tobytes() == then["memory"].tobytes()
    np.testing.assert_array_equal(page.values("memory-0-d"), (then["memory"] - now["memory"]).ravel())
    assert "numbers differ" in page.text("#compare-note")
    page.find("input[name=pa]").send_keys("5", Keys.ENTER)
    page.until(lambda: page.text("#compare-note") == "They are equal, bit for bit.")


def test_a_pattern_is_told_and_asked_back(page: Page, client: Client) -> None:
    client.session("told").close()
    page.open("/session/told")
    page.until(lambda: page.shows(0))
    page.find("#slowly").click()
    first = page.find("#pattern button")
    before = first.get_attribute("aria-pressed")
    first.send_keys(Keys.SPACE)
    assert first.get_attribute("aria-pressed") != before
    first.send_keys(Keys.ARROW_DOWN)
    assert page.browser.switch_to.active_element.get_attribute("data-at") == "1 0"
    page.find("#tell").click()
    page.until(lambda: "told" in page.text("#chunk .toolbar .note"))
    page.find("#recall").click()
    page.until(lambda: page.text("#chunk .toolbar .note") == "all 40 bits right")
    slots = [element.text for element in page.browser.find_elements(By.CSS_SELECTOR, "#answer .slot")]
    assert len(slots) == 5
    assert all(slot == "" or 0 <= int(slot) < 64 for slot in slots)
    with client.session("told") as session:
        assert session.position == 11


def test_it_keeps_up_with_a_fast_stream(page: Page, client: Client) -> None:
    with client.session("fast") as session:
        page.open("/session/fast")
        page.until(lambda: page.shows(0))
        for _ in session.stream(np.tile(episode(7), (60, 1))[:, None]):
            pass
        page.until(lambda: page.shows(780))
        assert page.values("memory").tobytes() == session.dump(["memory"])["memory"].tobytes()


def test_a_session_that_is_not_there_is_said_so(page: Page) -> None:
    page.open("/session/nobody")
    assert "nobody" in page.until(lambda: page.text("#connection.lost"))
    page.browser.get_log("browser")  # the browser itself reports the 404


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(page: Page, client: Client, scheme: str) -> None:
    client.session("phone").close()
    browser = page.browser
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_feature]})
    try:
        for view in ("/", "/session/phone", "/compare?a=phone&b=phone"):
            page.open(view)
            page.until(lambda: page.text("#connection") == "connected")
            page.find("h1")
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), view
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_killed_server_shows_as_lost_and_heals(page: Page, client: Client, server: ServerProcess) -> None:
    with client.session("healed") as session:
        session.step(episode(8))
    page.open("/session/healed")
    page.until(lambda: page.shows(13))
    server.kill()
    page.until(lambda: page.find("#connection.lost"))
    assert page.shows(13)  # what was seen stays
    server.start()
    page.until(lambda: page.text("#connection") == "connected")
    with client.session("healed") as session:
        session.step(episode(9))
        page.until(lambda: page.shows(26))
        assert page.values("memory").tobytes() == session.dump(["memory"])["memory"].tobytes()
