"""The page's server, and requests to it as no browser would let a page make them."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    """The address of a page in front of a server, with its secret: `dnc watch`, in a process of its own as always."""
    command = [sys.executable, "-m", "dnc_serve.client.cli", "watch", "--no-browser", "--page-port", "0"]
    process = subprocess.Popen([*command, "--target", target], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        yield process.stdout.readline().strip().removeprefix("ready page=")
        process.terminate()
        process.wait()
