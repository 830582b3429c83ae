"""TLS to the store and to Sentinels, and a user that may do what docs/security.md says, and nothing else."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trustme

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store import open_store
from dnc_serve.handler.store.contract import Append, End, Prune, StoreRefused
from tests.documents import block
from tests.handler.store.redis_group import SERVICE, Sentinel
from tests.ports import own_port
from tests.programs import program
from tests.waiting import wait_until

# A port for both: Sentinels of the tests speak plain text to the servers that they name to clients, which speak TLS.
BOTH = """
frontend {name}
    bind 127.0.0.1:{port}
    tcp-request inspect-delay 60s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    tcp-request content accept if {{ req.len gt 5 }}
    use_backend {name}-encrypted if {{ req.ssl_hello_type 1 }}
    default_backend {name}-plain
backend {name}-encrypted
    server itself 127.0.0.1:{inner}
frontend {name}-inner
    bind 127.0.0.1:{inner} ssl crt {certificate}
    default_backend {name}-plain
backend {name}-plain
    server store 127.0.0.1:{leads_to}
"""
DEFAULTS = "defaults\n    mode tcp\n    timeout connect 60s\n    timeout client 600s\n    timeout server 600s\n"


def rule(password: str) -> list[str]:
    """What docs/security.md says, as the arguments of ACL SETUSER."""
    text = block("docs/security.md", "text", "user dnc")
    words = text.replace("PASSWORD", password).split()
    assert words[:2] == ["user", "dnc"]
    return words[1:]


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator:
    """Ports at which TLS, and plain text, lead to others; and the file of the authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    with contextlib.ExitStack() as stack:

        def start(*leads_to: int) -> tuple[Sequence[int], Path]:
            ports = [own_port() for _ in leads_to]
            text = DEFAULTS
            for number, (port, end) in enumerate(zip(ports, leads_to, strict=True)):
                text += BOTH.format(
                    name=f"n{number}", port=port, inner=own_port(), certificate=tmp_path / "server.pem", leads_to=end
                )
            config = tmp_path / f"haproxy-{ports[0]}.cfg"
            config.write_text(text)
            process = subprocess.Popen([program("haproxy"), "-f", str(config)])
            stack.callback(process.wait)
            stack.callback(process.kill)
            for port in ports:
                wait_until(lambda port=port: _listens(port), "HAProxy listens")
            return ports, tmp_path / "ca.pem"

        yield start


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def exercise(url: str, folder: Path, writes, **settings: object) -> None:
    """Everything that a store does."""
    store = open_store(url, folder, owner="server-a:8500", lease_s=600.0, **settings)
    store.open()
    sessions = writes(store)
    sessions.begin("a", records=5)
    lease = store.acquire("a")
    assert store.reserve("a", "ann", 10) == 0
    assert store.renew([lease]) == [lease]
    sessions.keep("a", 2, 4)
    assert store.commit([Append(sessions.record("a", 4, body=b"another"))]) == [None]
    assert store.commit([Prune("a", 7, 2)]) == [None]
    store.sync()
    assert store.snapshots("a", 7)
    assert store.snapshot("a", 7, 2) is not None
    assert sessions.ordinals("a") == [3, 4]
    assert store.owned("ann", "", "", 10)[0]
    assert store.overdue(1e9, 1e9, 10)
    assert store.size_bytes() > 0
    store.prunable(1e9, 1 << 40)
    assert store.commit([End("a", 7, "deleted", 1.0)]) == [None]
    assert store.forget_tombstones(2.0, 0) == 1
    assert list(store.heads()) == []
    store.close()


def test_tls_and_the_documented_rule_are_enough(redis_server, encrypted, tmp_path, writes):
    server = redis_server()
    with contextlib.closing(server.client()) as client:
        client.execute_command("ACL", "SETUSER", *rule("s3cret"))
    (port,), authority = encrypted(server.port)
    exercise(f"rediss://dnc:s3cret@127.0.0.1:{port}/0?ssl_ca_certs={authority}", tmp_path, writes)
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate") as refused:
        exercise(f"rediss://dnc:s3cret@127.0.0.1:{port}/0", tmp_path, writes)
    assert "s3cret" not in str(refused.value)


def test_sentinels_are_asked_by_tls_with_a_password_of_their_own(redis_server, encrypted, tmp_path, writes):
    primary = redis_server()
    replica = redis_server(replicaof=f"127.0.0.1 {primary.port}")
    with contextlib.closing(primary.client()) as client:
        client.execute_command("ACL", "SETUSER", *rule("s3cret"))
        wait_until(lambda: client.info("replication")["connected_slaves"] == 1, f"{replica.port} follows")
    (named,), _ = encrypted(primary.port)
    sentinel = Sentinel(tmp_path, named, password="an0ther")
    try:
        (asked,), authority = encrypted(sentinel.port)
        wait_until(sentinel.state, "the Sentinel answers")
        url = f"rediss+sentinel://dnc:s3cret@127.0.0.1:{asked}/{SERVICE}/0?ssl_ca_certs={authority}"
        exercise(f"{url}&sentinel_password=an0ther", tmp_path, writes, replicas=1, answers_first=True)
        with pytest.raises(StoreUnavailable) as refused:
            exercise(f"{url}&sentinel_password=wr0ng", tmp_path, writes)
        assert "wr0ng" not in str(refused.value)
        assert "s3cret" not in str(refused.value)
    finally:
        sentinel.kill()


def test_each_part_of_the_rule_is_needed_and_missed_at_the_start(redis_server, tmp_path, writes):
    server = redis_server()
    url = f"redis://dnc:s3cret@127.0.0.1:{server.port}/0"
    name, *words = rule("s3cret")
    granted = [word for word in words if word.startswith("+") and word not in ("+config|get", "+waitaof")]
    assert len(granted) > 20
    with contextlib.closing(server.client()) as client:
        for word in granted:
            client.execute_command("ACL", "SETUSER", name, "reset", *(other for other in words if other != word))
            with pytest.raises(StoreRefused, match=r"docs/security\.md has the rule") as refused:
                open_store(url, tmp_path, owner="server-a:8500", lease_s=600.0).open()
            assert word[1:].partition("|")[0] in str(refused.value).lower()
        others = [word for word in words if not word.startswith("~")]
        client.execute_command("ACL", "SETUSER", name, "reset", *others, "~other:*")
        with pytest.raises(StoreRefused, match=r"docs/security\.md"):
            open_store(url, tmp_path, owner="server-a:8500", lease_s=600.0).open()
        client.execute_command("ACL", "SETUSER", name, "reset", *(word for word in words if word != "+waitaof"))
        with pytest.raises(StoreRefused, match="waitaof"):
            open_store(url, tmp_path, owner="server-a:8500", lease_s=600.0, replicas=1).open()
        client.execute_command("ACL", "SETUSER", name, "reset", *words)
        for foreign in (("SET", "other", "1"), ("KEYS", "*"), ("FLUSHALL",), ("CONFIG", "SET", "appendfsync", "no")):
            with pytest.raises(Exception, match=r"(?i)permission"):
                client.__class__(port=server.port, username="dnc", password="s3cret").execute_command(*foreign)
    exercise(url, tmp_path, writes)
