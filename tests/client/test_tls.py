"""TLS on one side only, or with the wrong certificates: the error says the cause, and what to do."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from dnc_serve.client import TLS, AsyncClient, Client, Retry, Unavailable
from tests.handler.door import open_door
from tests.handler.harness import random_inputs
from tests.ports import own_port

QUICK = Retry(first_wait_s=0.01, longest_wait_s=0.1)


class Files:
    """Certificates of an authority, and of one that nobody knows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known, self._unknown = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = folder / "ca.pem", folder / "other-ca.pem"
        self._known.cert_pem.write_to_path(self.ca)
        self._unknown.cert_pem.write_to_path(self.other_ca)

    def pair(self, name: str, known: bool = True) -> tuple[Path, Path]:
        """Certificate and key for a name."""
        issued = (self._known if known else self._unknown).issue_cert(name)
        certificate, key = self._folder / f"{name}-{known}.pem", self._folder / f"{name}-{known}-key.pem"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def servers(
    files: Files, address: str, small_artifact: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Addresses by kind."""
    certificate, key = files.pair("127.0.0.1")
    tls = {"tls_certificate": str(certificate), "tls_key": str(key)}
    with (
        open_door(small_artifact, tmp_path_factory.mktemp("tls"), **tls) as one,
        open_door(small_artifact, tmp_path_factory.mktemp("mutual"), **tls, tls_client_ca=str(files.ca)) as both,
    ):
        yield {"plain": address, "tls": one.addresses.grpc, "mutual": both.addresses.grpc}


Make = Callable[[Files], TLS | bool | None]


@pytest.mark.parametrize(
    ("server", "tls", "cause"),
    [
        ("tls", lambda files: None, r"the server speaks TLS: use tls=True, or TLS\(ca=…\)"),
        ("mutual", lambda files: None, "the server speaks TLS"),
        ("plain", lambda files: True, "what listens there doesn't speak TLS: leave `tls` out"),
        ("plain", lambda files: TLS(ca=files.ca), "what listens there doesn't speak TLS"),
        ("tls", lambda files: True, r"doesn't trust the server's certificate: name .* TLS\(ca=…\)"),
        ("tls", lambda files: TLS(ca=files.other_ca), "doesn't trust the server's certificate"),
        ("mutual", lambda files: TLS(ca=files.other_ca), "doesn't trust the server's certificate"),
        (
            "mutual",
            lambda files: TLS(ca=files.ca),
            r"asks for a certificate of the client: name one in TLS",
        ),
        (
            "mutual",
            lambda files: TLS(files.ca, *files.pair("me@example", known=False)),
            "doesn't trust this client's certificate",
        ),
        (
            "tls",
            lambda files: TLS(ca=files.ca, server_name="another.example"),
            "certificate is for another",
        ),
    ],
)
@pytest.mark.parametrize("retry", [None, QUICK], ids=["once", "again"])
def test_causes(
    files: Files, servers: dict[str, str], server: str, tls: Make, cause: str, retry: Retry | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    target = servers[server]
    with (
        Client(target, tls=tls(files), retry=retry, connect_timeout_s=0.2) as client,
        pytest.raises(Unavailable, match=f"no server answers at {target}: .*{cause}"),
    ):
        client.session()
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{target} doesn't answer: ")
    assert "is `dnc serve` running there?" not in warning


@pytest.mark.parametrize(
    ("tls", "cause"),
    [
        (lambda files: TLS(ca=files.other_ca), "doesn't trust the server's certificate"),
        (lambda files: TLS(ca=files.ca, server_name="another.example"), "certificate is for another"),
    ],
)
def test_a_handshake_that_fails_is_told_though_the_next_address_refuses(
    files: Files, servers: dict[str, str], tls: Make, cause: str
) -> None:
    target = f"ipv4:{servers['tls']},127.0.0.1:{own_port()}"
    with (
        Client(target, tls=tls(files), retry=None, connect_timeout_s=0.2) as client,
        pytest.raises(Unavailable, match=f"{cause}.*Connection refused"),
    ):
        client.session()


async def test_with_what_they_ask_for_they_answer(files: Files, servers: dict[str, str]) -> None:
    inputs = random_inputs(1, 3)
    for server, tls in (
        ("plain", None),
        ("tls", TLS(ca=files.ca)),
        ("tls", TLS(str(files.ca), server_name="127.0.0.1")),
        ("mutual", TLS(files.ca, *files.pair("me@example"))),
    ):
        async with AsyncClient(servers[server], tls=tls) as client, client.session() as session:
            await session.step(inputs)
