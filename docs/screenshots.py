"""Screenshots of `dnc watch` for the documentation, taken with a headless Chromium."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from dnc_serve.client.async_client import AsyncClient
from dnc_serve.client.client import Client, LoopThread
from dnc_serve.client.watch.site import Site
from dnc_serve.model.tasks.copy import encode, recall_inputs

WIDTH, WAIT_SECONDS = 1280, 20
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


def take(address: str, folder: Path) -> None:
    """Writes the views of a server of the copy model, and one in the dark on a phone, as PNG files."""
    with Client(address) as client, page(address) as url, chromium() as browser:
        sessions = {name: client.session(name) for name in ("atlas", "beacon", "patient-17")}
        for seed, session in enumerate(sessions.values()):
            session.step(_episode(seed, 5 + seed))
        watched = sessions["patient-17"]

        _open(browser, url, "/")
        _until(browser, "return document.querySelectorAll('#sessions tr').length >= 3")
        for seed in range(4):
            sessions["beacon"].step(_episode(seed, (4, 12, 7, 10)[seed]))
            _pause(browser, 1.0)
        _shoot(browser, folder / "watch-sessions.png", 356)

        _open(browser, url, "/session/patient-17")
        _until(browser, "return document.getElementById('maps').dataset.position")
        for seed in range(3):
            watched.reset()
            for timestep in _episode(10 + seed, 10):
                watched.step(timestep[None])
                _pause(browser, 0.06)
        browser.find_element(By.ID, "tell").click()
        _until(browser, "return document.querySelector('#chunk .note').textContent.startsWith('told')")
        browser.find_element(By.ID, "recall").click()
        _until(browser, "return document.querySelector('#chunk .note').textContent.includes('right')")
        _shoot(browser, folder / "watch-live.png", 1120)

        back = watched.info().position - 8
        browser.execute_script(
            "const slider = document.getElementById('slider'); slider.value = arguments[0];"
            "slider.dispatchEvent(new Event('input'))",
            back,
        )
        _until(browser, f"return document.getElementById('maps').dataset.position == '{back}'")
        _shoot(browser, folder / "watch-past.png", 1000)

        fork = client.session("patient-17").fork("patient-17-what-if", position=back)
        fork.step(_episode(99, 4)[1:5])
        _open(browser, url, "/compare?a=patient-17&b=patient-17-what-if")
        _until(browser, "return document.querySelector('#compare-note').textContent.includes('differ')")
        _shoot(browser, folder / "watch-compare.png")

        phone = {"width": 390, "height": 840, "deviceScaleFactor": 1.5, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        _open(browser, url, "/session/patient-17")
        _until(browser, "return document.getElementById('maps').dataset.position")
        browser.execute_script("document.getElementById('maps').scrollIntoView()")
        _pause(browser, 0.5)
        browser.save_screenshot(str(folder / "watch-phone.png"))


def take_any_model(address: str, inputs: Any, folder: Path) -> None:
    """Writes a session of a server of another model, after inputs [T, *shape], as a PNG file."""
    with Client(address) as client, page(address) as url, chromium() as browser:
        client.session("other").step(inputs)
        _open(browser, url, "/session/other")
        _until(browser, f"return document.getElementById('maps').dataset.position == '{len(inputs)}'")
        _pause(browser, 1.0)
        _shoot(browser, folder / "watch-any-model.png", 820)


@contextmanager
def page(address: str) -> Iterator[str]:
    """The address of a page in front of the server."""
    thread = LoopThread()

    async def start() -> tuple[AsyncClient, Site, str]:
        client = AsyncClient(address, retry=None)
        site = Site(client)
        return client, site, await site.start(0)

    client, site, url = thread.run(start())
    try:
        yield url
    finally:
        thread.run(site.stop())
        thread.run(client.close())
        thread.stop()


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    driver = shutil.which("chromedriver")
    if driver is None:
        raise SystemExit("screenshots need chromium and chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield browser
        finally:
            browser.quit()


def _episode(seed: int, length: int) -> Any:
    bits = np.random.default_rng(seed).integers(0, 2, (length, 8))
    return np.concatenate([encode(bits), recall_inputs(length)])


def _open(browser: webdriver.Chrome, url: str, view: str) -> None:
    browser.set_window_size(WIDTH, 900)
    browser.get("about:blank")
    browser.get(url.rstrip("/") + view)


def _until(browser: webdriver.Chrome, script: str) -> None:
    def holds(browser: webdriver.Chrome) -> Any:
        return browser.execute_script(script)

    condition: Callable[[webdriver.Chrome], Any] = holds
    WebDriverWait(browser, WAIT_SECONDS, 0.1, ignored_exceptions=[Exception]).until(condition)


def _pause(browser: webdriver.Chrome, seconds: float) -> None:
    browser.execute_async_script("setTimeout(arguments[1], arguments[0] * 1000)", seconds)


def _shoot(browser: webdriver.Chrome, path: Path, height: int | None = None) -> None:
    """The whole page, or its upper part."""
    browser.execute_script("scrollTo(0, 0)")
    whole = browser.execute_script("return document.documentElement.scrollHeight")
    view = {"width": WIDTH, "height": height or whole, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    _pause(browser, 0.4)
    browser.save_screenshot(str(path))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
