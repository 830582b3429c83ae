"""The page's server, and requests to it as no browser would let a page make them."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dnc_serve.client.async_client import AsyncClient
from dnc_serve.client.client import LoopThread
from dnc_serve.client.watch.site import Site
from tests.waiting import PATIENCE_S


def request(address: str, path: str, headers: dict[str, str], body: Any = None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(address.partition("#")[0] + path, data, headers)
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


@contextmanager
def site(target: str) -> Iterator[str]:
    """The address of a page in front of a server, with its secret."""
    thread = LoopThread()

    async def start() -> tuple[AsyncClient, Site, str]:
        client = AsyncClient(target, retry=None)
        site = Site(client)
        return client, site, await site.start(0)

    client, served, address = thread.run(start())
    yield address
    thread.run(served.stop())
    thread.run(client.close())
    thread.stop()
