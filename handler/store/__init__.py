"""Where sessions survive: one contract (`contract.py`), kept by SQLite for one server and by Redis for several."""

from pathlib import Path

from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.store.contract import End, Store

SPILL_FOLDER = "spill"


def make_store(config: ServeConfig, owner: str, folder: Path | None = None, part: str = "") -> Store:
    """The store of a server, not opened yet.

    With durability off nothing is recorded: states that find no room in memory go to a store of their own, and what an
    earlier run recorded is left alone. `owner` is the address that a shared store sends clients of our sessions to;
    `folder` is a worker's part of the state folder, and `part` that of a model among others in a shared store.
    """
    folder = folder or config.state_dir
    if config.durability == "off":
        return open_store("sqlite", folder / SPILL_FOLDER)
    return open_store(config.store, folder, owner=owner, lease_s=config.lease_s, part=part)


def empty(store: Store) -> None:
    """Forgets all sessions of an open store: a spill is of no use to the next run."""
    now = CLOCK.now()
    store.commit([End(head.session_id, head.incarnation, "deleted", now) for head in store.heads() if not head.ended])
    store.forget_tombstones(now + 1.0, 0)


def open_store(url: str, state_dir: Path, owner: str = "", lease_s: float = 15.0, part: str = "") -> Store:
    """The store that `url` names, not yet opened.

    `sqlite` is a file in `state_dir`; `redis://`, `rediss://` and `unix://` are a Redis or Valkey that several servers
    share, each under its `owner`, the address that clients are sent to, holding sessions for `lease_s` seconds at a
    time, and apart from those of other models by `part`. Raises ValueError for another URL, ModuleNotFoundError where
    the client of Redis is not installed.
    """
    if url == "sqlite":
        from dnc_serve.handler.store.sqlite import SQLiteStore

        return SQLiteStore(state_dir)
    if url.startswith(("redis://", "rediss://", "unix://")):
        from dnc_serve.handler.store.redis import RedisStore

        return RedisStore(url, owner, lease_s, part)
    scheme = url.split(":", 1)[0]  # what follows may hold a password
    raise ValueError(f"store {scheme!r} is unknown: expected sqlite, or a URL with redis://, rediss:// or unix://")
