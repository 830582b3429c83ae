"""Requests to the page's server as no browser would let a page make them."""

import json
import urllib.error
import urllib.request
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
