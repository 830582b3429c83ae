"""A real server in a process of its own, `dnc watch`'s page in front of it, and a real Chromium to look at it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from dnc_serve.client.async_client import AsyncClient
from dnc_serve.client.client import Client
from dnc_serve.client.loop_thread import LoopThread
from dnc_serve.client.watch.site import Site
from dnc_serve.model.export import export
from dnc_serve.model.pretrained import path as pretrained
from dnc_serve.model.weights import load_model

REPOSITORY = Path(__file__).parents[3]
START_SECONDS = 60
CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--force-device-scale-factor=1", "--window-size=1280,1000",
)  # fmt: skip


class ServerProcess:
    """The bundled copy model, served; killed and started again at the same port."""

    def __init__(self, artifact: Path, state_dir: Path) -> None:
        self.address = "127.0.0.1:0"
        self._artifact, self._state_dir = artifact, state_dir
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-m", "tests.client.watch.serving", str(self._artifact), str(self._state_dir), port]
        self._process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the server didn't start"

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(START_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="package")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    export(load_model(pretrained("copy")), folder)
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
    thread = LoopThread()

    async def start() -> tuple[AsyncClient, Site, str]:
        client = AsyncClient(server.address, timeout_s=20, retry=None)
        site = Site(client)
        return client, site, await site.start(0)

    client, site, address = thread.run(start())
    yield address
    thread.run(site.stop())
    thread.run(client.close())
    thread.stop()


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()
