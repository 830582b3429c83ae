"""A power loss of the Redis host: its log is cut back to what was synced, and holds what was acknowledged."""

import contextlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store import open_store
from dnc_serve.handler.store.contract import Append
from tests.programs import program

LOSSES = 3
COMMITS = 50  # before a loss, at least


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that is started from now on notes what it has synced."""
    compiler = program("cc", "gcc")
    library = tmp_path / "note_syncs.so"
    source = Path(__file__).with_name("note_syncs.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", library.name)  # by its name alone: a path might hold spaces
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))


def lose_power(folder: Path) -> int:
    """Takes from the log of a killed Redis what was not synced; returns how many bytes are left."""
    left = 0
    for log in (folder / "appendonlydir").glob("*.aof"):
        note = log.with_name(f"{log.name}.synced")
        if note.exists():
            os.truncate(log, int(note.read_text()))
            left += log.stat().st_size
    return left


def write_until_power_is_lost(server, writes, tmp_path, acknowledged, **settings):
    """Appends to session "a" until the host is gone; returns how far it came, and what the store has afterwards."""
    store = open_store(server.url, tmp_path, owner="server-a:8500", lease_s=600.0)
    store.open()
    sessions = writes(store)
    if not acknowledged:
        sessions.begin("a")
    store.acquire("a")
    with server.client() as client:
        for name, value in settings.items():
            client.config_set(name, value)
    enough = threading.Event()
    killer = threading.Thread(target=lambda: enough.wait() and server.kill())
    killer.start()
    last = acknowledged + COMMITS
    try:
        while True:
            assert store.commit([Append(sessions.record("a", acknowledged + 1))]) == [None]
            acknowledged += 1
            if acknowledged >= last:
                enough.set()  # it is killed in the midst of what follows
    except StoreUnavailable:
        killer.join()
    with contextlib.suppress(StoreUnavailable):  # its Redis is gone
        store.close()
    assert lose_power(server.folder) > 0
    server.start()
    after = open_store(server.url, tmp_path, owner="server-a:8500", lease_s=600.0)
    after.open()
    found = writes(after).ordinals("a")
    after.close()
    return acknowledged, found


def test_a_power_loss_of_redis_takes_nothing_that_was_acknowledged(noted, redis_server, writes, tmp_path):
    server = redis_server()
    stands = 0
    for _ in range(LOSSES):
        acknowledged, found = write_until_power_is_lost(server, writes, tmp_path, stands)
        assert acknowledged > stands
        assert found[:acknowledged] == list(range(1, acknowledged + 1))
        assert len(found) <= acknowledged + 1  # the last one may have been synced, and not answered
        stands = len(found)


def test_with_another_setting_it_would(noted, redis_server, writes, tmp_path):
    """Why the setting is checked; and that what is cut here is really what was not synced."""
    acknowledged, found = write_until_power_is_lost(redis_server(), writes, tmp_path, 0, appendfsync="no")
    assert len(found) < acknowledged
