"""Who may come in: tokens and TLS, through the real door."""

import contextlib
import hashlib
import logging
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trustme
from grpc import StatusCode
from grpc_status import rpc_status

from dnc_serve.handler.api import access
from dnc_serve.handler.api.access import Access, read_tokens
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from tests.handler.door import TIMEOUT, Door, chunk, error_info, open_door, refused, retry_after_s
from tests.handler.harness import random_inputs
from tests.waiting import wait_until


def entry(name: str, token: str, **settings: Any) -> str:
    lines = [f'name = "{name}"', f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"']
    lines += [f"{key} = {value}" for key, value in settings.items()]
    return "[[token]]\n" + "\n".join(lines) + "\n"


class As:
    """The door, with a token on each call."""

    def __init__(self, door: Door, token: str) -> None:
        self.stub = door.stub
        self.options: dict[str, Any] = {"metadata": (("authorization", f"Bearer {token}"),), "timeout": TIMEOUT}

    def create(self, session_id: str) -> pb.CreateSessionResponse:
        return self.stub.CreateSession(pb.CreateSessionRequest(session_id=session_id), **self.options)

    def get(self, session_id: str) -> pb.Session:
        return self.stub.GetSession(pb.GetSessionRequest(session_id=session_id), **self.options).session

    def step(self, session_id: str, timesteps: int = 2) -> pb.ChunkResult:
        message = chunk(session_id, random_inputs(0, timesteps))
        return self.stub.Step(pb.StepRequest(chunk=message), **self.options).result

    def names(self) -> list[str]:
        answer = self.stub.ListSessions(pb.ListSessionsRequest(), **self.options)
        return [session.session_id for session in answer.sessions]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(
        entry("alice", "alice-1")
        + entry("alice", "alice-looks", read_only="true")
        + entry("bob", "bob-1", max_sessions=2)
        + entry("small", "small-1", max_state_bytes=2000)
        + entry("slow", "slow-1", max_timesteps_per_second=10)
        + entry("gone", "gone-1", expires="2020-01-01T00:00:00Z")
    )
    return path


@pytest.fixture(scope="module")
def door(artifact_folder: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(artifact_folder, tmp_path_factory.mktemp("state"), tokens=str(tokens)) as door:
        yield door


@pytest.mark.parametrize("metadata", [(), (("authorization", "alice-1"),), (("authorization", "Basic alice-1"),)])
def test_without_a_token_nobody_comes_in(door: Door, metadata: Any) -> None:
    with refused("UNAUTHENTICATED", StatusCode.UNAUTHENTICATED):
        door.stub.GetModel(pb.GetModelRequest(), metadata=metadata, timeout=TIMEOUT)
    with refused("UNAUTHENTICATED", StatusCode.UNAUTHENTICATED):
        list(door.stub.Stream(iter([]), metadata=metadata, timeout=TIMEOUT))


@pytest.mark.parametrize("token", ["wrong", "", "gone-1", "x" * 5000])
def test_a_wrong_or_expired_token_is_told_nothing_more(door: Door, token: str) -> None:
    with refused("UNAUTHENTICATED", StatusCode.UNAUTHENTICATED):
        As(door, token).names()


def test_a_session_is_visible_only_to_its_owner(door: Door) -> None:
    alice, bob = As(door, "alice-1"), As(door, "bob-1")
    alice.create("hers")
    assert "hers" in alice.names()
    assert "hers" not in bob.names()
    calls = [
        lambda: bob.get("hers"),
        lambda: bob.step("hers"),
        lambda: list(bob.stub.DumpMemory(pb.DumpMemoryRequest(dump=pb.Dump(session_id="hers")), **bob.options)),
        lambda: list(bob.stub.WatchMemory(pb.WatchMemoryRequest(session_id="hers"), **bob.options)),
        lambda: list(bob.stub.ExportSession(pb.ExportSessionRequest(session_id="hers"), **bob.options)),
        lambda: bob.stub.DeleteSession(pb.DeleteSessionRequest(session_id="hers"), **bob.options),
        lambda: bob.stub.ForkSession(pb.ForkSessionRequest(session_id="hers", fork_session_id="mine"), **bob.options),
        lambda: bob.stub.ResetSession(pb.ResetSessionRequest(reset=pb.Reset(session_id="hers")), **bob.options),
    ]
    for call in calls:
        with refused("SESSION_NOT_FOUND", StatusCode.NOT_FOUND):
            call()
    [answer] = bob.stub.Stream(iter([pb.StreamRequest(chunk=chunk("hers", random_inputs(0, 1)))]), **bob.options)
    assert error_info(answer.error.status).reason == "SESSION_NOT_FOUND"
    assert alice.get("hers").position == 0


def test_ownership_follows_the_name_and_a_read_only_token_only_looks(door: Door) -> None:
    As(door, "alice-1").create("looked-at")
    looker = As(door, "alice-looks")
    assert looker.get("looked-at").position == 0
    with refused("PERMISSION_DENIED", StatusCode.PERMISSION_DENIED):
        looker.step("looked-at")
    with refused("PERMISSION_DENIED", StatusCode.PERMISSION_DENIED):
        looker.create("new")
    assert As(door, "alice-1").get("looked-at").position == 0


def test_the_limits_of_a_token(door: Door) -> None:
    bob, small = As(door, "bob-1"), As(door, "small-1")
    bob.create("b1")
    bob.create("b2")
    with refused("SESSION_LIMIT", StatusCode.RESOURCE_EXHAUSTED):
        bob.create("b3")
    small.create("s1")  # 1,536 bytes
    with refused("STATE_TOO_LARGE", StatusCode.RESOURCE_EXHAUSTED) as info:
        small.create("s2")
    assert info["limit"] == "2000"


def test_too_many_timesteps_a_second_are_told_when_to_come_again(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(access, "time", SimpleNamespace(monotonic=lambda: clock.now))
    slow = As(door, "slow-1")
    slow.create("slow")
    assert slow.step("slow", 25).position == 25  # two seconds' worth, and 5 more
    with pytest.raises(grpc.RpcError) as caught:
        slow.step("slow", 1)
    status = rpc_status.from_call(caught.value)
    assert status is not None and error_info(status).reason == "RATE_LIMIT"
    assert retry_after_s(status) == pytest.approx(0.55)
    clock.now += 0.45
    with refused("RATE_LIMIT", StatusCode.RESOURCE_EXHAUSTED):
        slow.step("slow", 1)
    clock.now += 0.1
    assert slow.step("slow", 1).position == 26


def test_a_token_is_rotated_without_a_restart(door: Door, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    As(door, "alice-1").create("rotated")
    rotated = tokens.read_text() + entry("alice", "alice-2")
    tokens.write_text(rotated)

    def comes_in() -> bool:
        try:
            return As(door, "alice-2").get("rotated").session_id == "rotated"
        except grpc.RpcError:
            return False

    wait_until(comes_in, "the new token is known")
    tokens.write_text("[[token]]\nname = 3\n")  # a wrong file changes nothing
    wait_until(lambda: "the tokens stay as they were" in caplog.text, "the wrong file was read")
    assert As(door, "alice-2").names()
    tokens.write_text(rotated)


def test_tokens_never_reach_the_log(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), refused("UNAUTHENTICATED", StatusCode.UNAUTHENTICATED):
        As(door, "very-secret-token").names()
    assert "very-secret-token" not in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[token", "not TOML"),
        ('[[token]]\nname = "a b"\nsha256 = "x"', "token.0.name"),
        ('[[token]]\nname = "a"\nsha256 = "plain-secret"', "token.0.sha256"),
        ('[[token]]\nname = "a"\nsha256 = "' + "0" * 64 + '"\ncolour = 3', "token.0.colour"),
    ],
)
def test_a_wrong_file_is_named_but_no_secret_is_shown(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        read_tokens(text, "tokens.toml")
    assert "plain-secret" not in str(caught.value)


def test_tokens_may_come_from_the_environment() -> None:
    assert Access(tokens_text=entry("alice", "alice-1")).grant_of_token("alice-1").owner == "alice"


class Authority:
    """Certificates on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_path))
        self.issue()

    def issue(self) -> None:
        certificate = self.ca.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        (self.folder / "certificate.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))

    def settings(self) -> dict[str, str]:
        return {"tls_certificate": str(self.folder / "certificate.pem"), "tls_key": str(self.folder / "key.pem")}


def model_over(address: str, credentials: grpc.ChannelCredentials) -> pb.GetModelResponse:
    with grpc.secure_channel(address, credentials) as channel:
        return dnc_pb2_grpc.DncServiceStub(channel).GetModel(pb.GetModelRequest(), timeout=TIMEOUT)


def test_tls_and_a_renewed_certificate(artifact_folder: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with open_door(artifact_folder, tmp_path / "state", **authority.settings()) as door:
        trusting = grpc.ssl_channel_credentials(authority.ca_path.read_bytes())
        assert model_over(door.addresses.grpc, trusting).HasField("inputs")
        with pytest.raises(grpc.RpcError) as caught:
            door.stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT)  # without TLS
        assert caught.value.code() is StatusCode.UNAVAILABLE
        renewed = Authority(tmp_path)  # another authority altogether
        with pytest.raises(grpc.RpcError):
            model_over(door.addresses.grpc, trusting)
        assert model_over(door.addresses.grpc, grpc.ssl_channel_credentials(renewed.ca_path.read_bytes())).HasField(
            "inputs"
        )


def test_mutual_tls(artifact_folder: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    client = authority.ca.issue_cert("client")
    settings = {**authority.settings(), "tls_client_ca": str(authority.ca_path)}
    with open_door(artifact_folder, tmp_path / "state", **settings) as door:
        root = authority.ca_path.read_bytes()
        chain = b"".join(pem.bytes() for pem in client.cert_chain_pems)
        known = grpc.ssl_channel_credentials(root, client.private_key_pem.bytes(), chain)
        assert model_over(door.addresses.grpc, known).HasField("inputs")
        with pytest.raises(grpc.RpcError) as caught:
            model_over(door.addresses.grpc, grpc.ssl_channel_credentials(root))
        assert caught.value.code() is StatusCode.UNAVAILABLE


def over_http(address: str, ca: bytes, *certificate: Path) -> int:
    """The status of a call over HTTP, on a connection of its own."""
    context = ssl.create_default_context(cadata=ca.decode())
    if certificate:
        context.load_cert_chain(*certificate)
    with contextlib.closing(HTTPSConnection(address, context=context, timeout=TIMEOUT)) as connection:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])  # clients of an address name no server
def test_a_certificate_is_renewed_over_http_too(artifact_folder: Path, tmp_path: Path, host: str) -> None:
    authority = Authority(tmp_path)
    with open_door(artifact_folder, tmp_path / "state", http_port=0, **authority.settings()) as door:
        address = door.addresses.http.replace("127.0.0.1", host)
        former = authority.ca_path.read_bytes()
        assert over_http(address, former) == 200
        key = (tmp_path / "key.pem").read_bytes()
        (tmp_path / "key.pem").write_bytes(b"half")  # a renewal that is half done changes nothing
        assert over_http(address, former) == 200
        (tmp_path / "key.pem").write_bytes(key)
        renewed = Authority(tmp_path)
        with pytest.raises(ssl.SSLCertVerificationError):
            over_http(address, former)
        assert over_http(address, renewed.ca_path.read_bytes()) == 200


def test_mutual_tls_over_http_and_its_authority_is_renewed(artifact_folder: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    settings = {**authority.settings(), "tls_client_ca": str(authority.ca_path)}

    def certificate_of(authority: Authority, name: str) -> tuple[Path, Path]:
        issued, files = authority.ca.issue_cert(name), (tmp_path / f"{name}.pem", tmp_path / f"{name}-key.pem")
        files[0].write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(files[1])
        return files

    former = certificate_of(authority, "former")
    with open_door(artifact_folder, tmp_path / "state", http_port=0, **settings) as door:
        address, ca = door.addresses.http, authority.ca_path.read_bytes()
        assert over_http(address, ca, *former) == 200
        with pytest.raises(OSError):  # an alert, or the connection's end
            over_http(address, ca)
        renewed = Authority(tmp_path)
        ca = renewed.ca_path.read_bytes()
        assert over_http(address, ca, *certificate_of(renewed, "present")) == 200
        with pytest.raises(OSError):
            over_http(address, ca, *former)
