"""Where sessions survive: one contract (`contract.py`), kept by SQLite for one server and by Redis for several."""

from pathlib import Path

from dnc_serve.handler.store.contract import Store


def open_store(url: str, state_dir: Path, owner: str = "", lease_s: float = 15.0) -> Store:
    """The store that `url` names, not yet opened.

    `sqlite` is a file in `state_dir`; `redis://`, `rediss://` and `unix://` are a Redis or Valkey that several servers
    share, each under its `owner`, the address that clients are sent to, holding sessions for `lease_s` seconds at a
    time. Raises ValueError for another URL, ModuleNotFoundError where the client of Redis is not installed.
    """
    if url == "sqlite":
        from dnc_serve.handler.store.sqlite import SQLiteStore

        return SQLiteStore(state_dir)
    if url.startswith(("redis://", "rediss://", "unix://")):
        from dnc_serve.handler.store.redis import RedisStore

        return RedisStore(url, owner, lease_s)
    scheme = url.split(":", 1)[0]  # what follows may hold a password
    raise ValueError(f"store {scheme!r} is unknown: expected sqlite, or a URL with redis://, rediss:// or unix://")
