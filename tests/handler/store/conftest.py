"""Both stores behind one fixture, and a real Redis for the second."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dnc_serve.handler.store import open_store
from dnc_serve.handler.store.contract import Append, Begin, Head, Keep, Record, SharedStore, Snapshot, Store
from tests.folders import memory_folder
from tests.ports import own_port
from tests.programs import program
from tests.waiting import PATIENCE_S, frozen, wait_until

LEASE_S = 2.0
SAFE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
SAFE["repl-diskless-sync-delay"] = "0"  # a replica need not wait for others to come, too


class RedisServer:
    """A redis-server of the test's own, on a free port, with its own folder."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = SAFE | {name.replace("_", "-"): value for name, value in settings.items()}
        self.port = own_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        executable = program("redis-server", "valkey-server")
        arguments = [f"--port {self.port}", "--bind 127.0.0.1", f'--dir "{self.folder}"']
        arguments += [f'--{name} "{value}"' for name, value in self.settings.items()]
        config = self.folder / "redis.conf"
        config.write_text("\n".join(argument[2:] for argument in arguments))
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen([executable, str(config)], stdout=log, stderr=log)
        wait_until(self._listens, "redis-server listens")
        if self._process.poll() is not None:
            pytest.fail(f"redis-server does not start: {(self.folder / 'log').read_text()}")

    def _listens(self) -> bool:
        """Or ended."""
        assert self._process is not None
        with contextlib.closing(self.client()) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except redis.ConnectionError:
                return self._process.poll() is not None

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        assert self._process is not None
        return frozen(self._process.pid)


@contextlib.contextmanager
def running_redis(**settings: str) -> Iterator[RedisServer]:
    with memory_folder() as folder:
        server = RedisServer(folder, **settings)
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis_server() -> Iterator[Callable[..., RedisServer]]:
    """Makes Redis servers that the test may kill and misconfigure."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running_redis(**settings))


class Sessions:
    """Writes sessions with plausible content."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def head(self, session_id: str, incarnation: int = 7, **changes: object) -> Head:
        facts = {"digest": "d1", "owner": "ann", "created_at": 10.5, "last_used_at": 10.5}
        facts |= {"position": 0, "experience": 0, "ordinal": 0} | changes
        return Head(session_id=session_id, incarnation=incarnation, **facts)  # type: ignore[arg-type]

    def record(self, session_id: str, ordinal: int, incarnation: int = 7, body: bytes | None = None) -> Record:
        body = bytes([ordinal % 256]) * 100 if body is None else body
        return Record(session_id, incarnation, ordinal, ordinal * 4, ordinal // 3, 100.25 + ordinal, body)

    def snapshot(self, session_id: str, ordinal: int, incarnation: int = 7, size: int = 500) -> Snapshot:
        state = bytes([ordinal % 256]) * size
        return Snapshot(session_id, incarnation, ordinal, ordinal * 4, ordinal // 3, 100.5 + ordinal, state)

    def acquire(self, session_id: str) -> None:
        """Where one has to, so as to write it."""
        if self.store.shared:
            cast(SharedStore, self.store).acquire(session_id)

    def begin(self, session_id: str, incarnation: int = 7, records: int = 0, **changes: object) -> Head:
        head = self.head(session_id, incarnation, **changes)
        self.acquire(session_id)
        appends = [Append(self.record(session_id, ordinal, incarnation)) for ordinal in range(1, records + 1)]
        outcomes = self.store.commit([Begin(head), *appends])
        assert outcomes == [None] * (records + 1)
        return head

    def append(self, session_id: str, *ordinals: int, incarnation: int = 7) -> None:
        mutations = [Append(self.record(session_id, ordinal, incarnation)) for ordinal in ordinals]
        assert self.store.commit(mutations) == [None] * len(mutations)

    def keep(self, session_id: str, *ordinals: int) -> None:
        mutations = [Keep(self.snapshot(session_id, ordinal)) for ordinal in ordinals]
        assert self.store.commit(mutations) == [None] * len(mutations)

    def ordinals(self, session_id: str, incarnation: int = 7, after: int = 0, up_to: int | None = None) -> list[int]:
        return [record.ordinal for record in self.store.records(session_id, incarnation, after, up_to)]


class Reopenable:
    """A store that a test can close and open again, as a restarted server does, and what writes into it."""

    def __init__(self, url: str, state_dir: Path) -> None:
        self._url, self._state_dir = url, state_dir
        self.store = self._open()
        self.sessions = Sessions(self.store)

    def _open(self) -> Store:
        store = open_store(self._url, self._state_dir, owner="server-a:8500", lease_s=LEASE_S)
        store.open()
        return store

    def again(self) -> Store:
        self.store.close()
        self.store = self.sessions.store = self._open()
        return self.store

    def before_and_after(self) -> Iterator[Store]:
        """The store as it is, and once it was closed and opened again."""
        yield self.store
        yield self.again()


@pytest.fixture(params=["sqlite", "redis"])
def reopenable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopenable]:
    if request.param == "redis":
        server = request.getfixturevalue("shared_redis")
        with contextlib.closing(server.client()) as client:
            client.flushall()
        url = server.url
    else:
        url = "sqlite"
    reopenable = Reopenable(url, tmp_path / "state")
    yield reopenable
    reopenable.store.close()


@pytest.fixture
def sessions(reopenable: Reopenable) -> Sessions:
    return reopenable.sessions


@pytest.fixture
def writes() -> type[Sessions]:
    """For tests that open their own stores."""
    return Sessions
