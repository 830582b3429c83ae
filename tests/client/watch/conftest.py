"""A real server in a process of its own, `dnc watch`'s page in front of it, and a real Chromium to look at it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from dnc_serve.client.client import Client
from dnc_serve.client.watch.guard import SECRET_HEADER
from dnc_serve.model.export import export
from dnc_serve.model.pretrained import path as pretrained
from dnc_serve.model.weights import load_model, task_of
from tests.client.watch.asking import site
from tests.programs import program
from tests.server_process import ServerProcess

CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--force-device-scale-factor=1", "--window-size=1280,1000",
)  # fmt: skip


@pytest.fixture(scope="package")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    run = pretrained("copy")
    export(load_model(run), folder, task=task_of(run))
    return folder


@pytest.fixture(scope="package")
def server(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(artifact, tmp_path_factory.mktemp("state"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="package")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="package")
def address(server: ServerProcess) -> Iterator[str]:
    """The page's address, with its secret."""
    with site(server.address) as address:
        yield address


@pytest.fixture(scope="package")
def secret(address: str) -> dict[str, str]:
    return {SECRET_HEADER: address.partition("#secret=")[2].rstrip("/")}


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = program("chromium"), program("chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()
