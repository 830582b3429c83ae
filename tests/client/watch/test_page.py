"""The page in a real Chromium, before a real server."""

from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
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
        text: str = self.until(lambda: self.texts(selector))[0]
        return text

    def texts(self, selector: str) -> list[str]:
        """In one command: between two, the page may have put other elements there."""
        script = "return Array.from(document.querySelectorAll(arguments[0]), (element) => element.innerText.trim())"
        texts: list[str] = self.browser.execute_script(script, selector)
        return texts

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, WAIT_SECONDS, 0.05, ignored_exceptions=[Exception]).until(
            lambda _: condition()
        )

    def values(self, figure: str) -> Any:
        """The numbers of a heatmap, as the page holds them."""
        script = f"return Array.from(document.getElementById('{figure}').heatmap.values)"
        return np.array(self.browser.execute_script(script), np.float32)

    def column(self, strip: str, position: int) -> Any:
        """What a strip over time shows of a position."""
        script = (
            "const {values, rows, columns, timeline} = document.getElementById(arguments[0]).heatmap;"
            "const place = timeline.columnOf(arguments[1]) - timeline.first;"
            "return Array.from({length: rows}, (_, row) => values[row * columns + place])"
        )
        return np.array(self.browser.execute_script(script, strip, position), np.float32)

    def seen(self, strip: str) -> Any:
        """The positions of which a strip shows something."""
        script = (
            "const {timeline, shown} = document.getElementById(arguments[0]).heatmap;"
            "return shown.filter(Boolean).map(({position}) => position)"
        )
        return self.browser.execute_script(script, strip)

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
    row = page.until(lambda: page.text("#sessions tr"))
    assert "listed" in row
    assert " 13 0 slot" in " ".join(row.split())
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
    page.until(lambda: not np.isnan(page.column("read-0", 13)).any())
    assert page.column("read-0", 13).tobytes() == dump["read_weights"].tobytes()
    gates = page.column("gates", 13)
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


def test_strips_are_filled_from_the_journal(page: Page, client: Client) -> None:
    inputs = episode(11)
    with client.session("strips") as session:
        outputs = session.step(inputs[:7])
        session.reset()
        outputs = np.concatenate([outputs, session.step(inputs[7:])])
        page.open("/session/strips?position=4")
        page.until(lambda: page.shows(4))
        page.until(lambda: page.seen("read-0") == list(range(1, 14)))
        for position in (1, 7, 8, 13):
            assert page.column("inputs-over-time", position).tobytes() == inputs[position - 1].tobytes()
            assert page.column("outputs-over-time", position).tobytes() == outputs[position - 1].tobytes()
        for position in (3, 8):
            dump = session.dump(position=position)
            assert page.column("write-0", position).tobytes() == dump["write_weights"].tobytes()
            assert page.column("usage", position).tobytes() == dump["usage_vector"].tobytes()
        assert len(page.browser.find_elements(By.CSS_SELECTOR, "#usage .reset")) == 1
        # What is stepped while one looks at the past comes in too.
        for _ in session.stream(np.tile(inputs, (47, 1))[:600].reshape(12, 50, 10)):
            pass
        page.find("#live").click()
        page.until(lambda: page.seen("read-0") == list(range(494, 614)))
        page.find("#span").send_keys("600")
        page.until(lambda: page.seen("read-0") == [*range(20, 611, 5), 613])
        assert page.text("#read-0 .axis.columns").split("\n")[1] == "5 positions a column →"
        assert page.column("read-0", 400).tobytes() == session.dump(["read_weights"], 400)["read_weights"].tobytes()


def test_a_read_leads_to_the_write_that_it_found(page: Page, client: Client, tmp_path: Path) -> None:
    with client.session("traced") as session:
        session.step(episode(12))
        written = {int(session.dump(["write_weights"], at)["write_weights"].argmax()): at for at in range(1, 8)}
        slot = int(session.dump(["read_weights"], 10)["read_weights"].argmax())
    page.open("/session/traced")
    page.until(lambda: page.find(f"#trace .reading[data-position='10'][data-slot='{slot}']")).click()
    page.until(lambda: page.shows(written[slot]))
    said = f"Slot {slot}, read at position 10, was written at position {written[slot]}."
    page.until(lambda: page.text("#past-note") == said)
    page.find("#live").click()
    page.until(lambda: page.shows(13))
    page.find("#read-0 canvas").send_keys(
        Keys.ARROW_RIGHT, *[Keys.ARROW_RIGHT] * 9, *[Keys.ARROW_DOWN] * slot, Keys.ENTER
    )
    page.until(lambda: page.text("#past-note") == said)
    # The address names session and position, and the link opens them in a tab that knows no secret yet.
    assert page.browser.current_url.endswith(f"/session/traced?position={written[slot]}")
    link = page.find("#link").get_attribute("href")
    page.browser.execute_script("sessionStorage.clear()")
    page.browser.get("about:blank")
    page.browser.get(link)
    page.until(lambda: page.shows(written[slot]))


def test_pictures_and_numbers_are_saved(page: Page, client: Client, tmp_path: Path) -> None:
    with client.session("saved") as session:
        outputs, memory = session.step(episode(13)), session.dump(["memory"])["memory"]
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.open("/session/saved")
    page.until(lambda: page.seen("outputs-over-time") == list(range(1, 14)))
    for figure in ("memory", "outputs-over-time"):
        page.find(f"#{figure} [aria-label$=CSV]").click()
    page.find("#history-png").click()
    whole = page.until(lambda: Image.open(tmp_path / "What-saved-remembers.png"))
    assert whole.width == 1200
    assert len(whole.getcolors(1 << 24)) > 50
    page.until(lambda: (tmp_path / "Memory.csv").exists() and (tmp_path / "Outputs.csv").exists())
    saved = np.loadtxt(tmp_path / "Memory.csv", delimiter=",", dtype=np.float32)
    assert saved.tobytes() == memory.tobytes()
    over_time = np.loadtxt(tmp_path / "Outputs.csv", delimiter=",", dtype=np.float32, skiprows=1)
    assert over_time[:, 0].tolist() == list(range(1, 14))
    assert over_time[:, 1:].tobytes() == outputs.tobytes()


def test_it_plays_what_was(page: Page, client: Client) -> None:
    with client.session("played") as session:
        session.step(episode(14))
    page.open("/session/played?position=11")
    page.until(lambda: page.shows(11))
    page.find("#play").click()
    page.until(lambda: page.shows(13) and page.find("#live").get_attribute("aria-pressed") == "true")
    assert page.text("#play") == "Play"


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
    slots = page.texts("#answer .slot")
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


def test_a_session_that_is_not_there_has_its_own_view(page: Page, client: Client) -> None:
    page.open("/session/nobody")
    assert page.text("h1") == "There is no session nobody"
    assert page.text("#connection") == "connected"
    page.browser.get_log("browser")  # the browser itself reports the 404
    page.find("#create").click()
    page.until(lambda: page.shows(0))
    client.session("nobody").delete()
    page.until(lambda: "ended" in page.text("#past-note"))
    assert page.text("#connection") == "connected"


VIEWS = ("/", "/session/views", "/session/views?position=4", "/session/nobody", "/compare?a=views&b=views&pb=3")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_all_can_be_read_and_used_by_everyone(page: Page, client: Client, scheme: str, width: int) -> None:
    """On a laptop and on a phone, in the light and in the dark, with a screen reader: as far as axe-core tells."""
    with client.session("views") as session:
        if not session.position:
            session.step(episode(15))
    browser = page.browser
    size = {"width": width, "height": 720, "deviceScaleFactor": 1, "mobile": width < 1000}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_feature]})
    try:
        for view in VIEWS:
            page.open(view)
            page.until(lambda: page.text("#connection") == "connected")
            page.find("h1")
            if "views" in view and "session" in view:
                page.until(lambda: page.seen("read-0") == list(range(1, 14)))
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), view
            checked = axe(browser)
            assert checked["violations"] == [], view
            assert len(checked["passes"]) > 10
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        if width == 1280:
            page.open("/session/views")
            page.until(lambda: page.shows(13))
            for selector in ("#memory canvas", "#tell", "#recall", "#pattern", "#trace svg"):
                assert page.find(selector).rect["y"] + page.find(selector).rect["height"] <= 720, selector
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.get_log("browser")  # the browser itself reports the 404


def axe(browser: Chrome) -> dict[str, list[Any]]:
    """What axe-core finds in the page: rules that are violated, with the elements, and rules that are kept."""
    browser.execute_script((resources.files("axe_core_python") / "axe.min.js").read_text())
    found: dict[str, list[Any]] = browser.execute_async_script(
        "const done = arguments[0];"
        "axe.run().then(({violations, passes}) => done({passes: passes.map(({id}) => id), violations:"
        " violations.map(({id, nodes}) => [id, nodes.map(({target, failureSummary}) => [target, failureSummary])])}))"
    )
    return found


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
