"""A real Redis for servers that share one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.handler.store.conftest import RedisServer


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    try:
        yield server
    finally:
        server.kill()
