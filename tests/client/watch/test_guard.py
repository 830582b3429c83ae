"""Who may use the page: requests as browsers and others would send them."""

import json

import pytest

from dnc_serve.client.client import Client
from dnc_serve.client.watch.guard import SECRET_HEADER, is_loopback
from tests.client.watch.asking import request


def test_the_page_holds_no_secret_and_forbids_what_it_needs_not(address: str, secret: dict[str, str]) -> None:
    status, headers, page = request(address, "", {})
    assert status == 200
    assert secret[SECRET_HEADER].encode() not in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("shown", ["", "wrong", "é"])
def test_without_the_secret_nothing_is_told(address: str, shown: str) -> None:
    status, _, answer = request(address, "api/sessions", {SECRET_HEADER: shown.encode().decode("latin-1")})
    assert status == 403
    assert json.loads(answer)["reason"] == "REFUSED"


@pytest.mark.parametrize("path", ["", "api/sessions"])
def test_a_name_that_was_made_to_point_here_is_refused(address: str, secret: dict[str, str], path: str) -> None:
    assert request(address, path, {**secret, "Host": "attacker.example:8600"})[0] == 403


def test_another_sites_page_can_change_nothing(address: str, secret: dict[str, str], client: Client) -> None:
    with client.session("guarded") as session:
        for origin in ("http://attacker.example", "null", "http://127.0.0.1:1"):
            status, _, _ = request(address, "api/sessions/guarded/reset", {**secret, "Origin": origin}, {})
            assert status == 403
        assert session.info().experience == 0
        own = address.partition("/#")[0]
        assert request(address, "api/sessions/guarded/reset", {**secret, "Origin": own}, {})[0] == 200
        assert session.info().experience == 1


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("localhost:8600", True), ("127.0.0.1:9", True), ("[::1]:80", True),
        ("127.0.0.1.attacker.example", False), ("192.168.0.7:8600", False), ("", False), ("[::1", False),
    ],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
