"""Where sessions survive: one contract (`contract.py`), kept by SQLite for one server and by Redis for several."""

from pathlib import Path
from typing import TYPE_CHECKING

from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.store.contract import End, Store
from dnc_serve.handler.store.redis_url import EXPECTED, SCHEMES

if TYPE_CHECKING:  # it reads the URL of a store itself
    from dnc_serve.handler.config import ServeConfig

SPILL_FOLDER = "spill"


def make_store(config: "ServeConfig", owner: str, folder: Path | None = None, part: str = "") -> Store:
    """The store of a server, not opened yet.

    With durability off nothing is recorded: states that find no room in memory go to a store of their own, and what an
    earlier run recorded is left alone. `owner` is the address that a shared store sends clients of our sessions to;
    `folder` is a worker's part of the state folder, and `part` that of a model among others in a shared store.
    """
    folder = folder or config.state_dir
    if config.durability == "off":
        return open_store("sqlite", folder / SPILL_FOLDER)
    return open_store(
        config.store, folder, owner=owner, lease_s=config.lease_s, part=part, replicas=config.store_replicas,
        answers_first=config.durability == "async",
    )  # fmt: skip


def empty(store: Store) -> None:
    """Forgets all sessions of an open store: a spill is of no use to the next run."""
    now = CLOCK.now()
    store.commit([End(head.session_id, head.incarnation, "deleted", now) for head in store.heads() if not head.ended])
    store.forget_tombstones(now + 1.0, 0)


def open_store(
    url: str, state_dir: Path, owner: str = "", lease_s: float = 15.0, part: str = "", replicas: int = 0,
    answers_first: bool = False,
) -> Store:  # fmt: skip
    """The store that `url` names, not yet opened.

    `sqlite` is a file in `state_dir`; the URLs of `redis_url.py` are a Redis or Valkey that several servers share, each
    under its `owner`, the address that clients are sent to, holding sessions for `lease_s` seconds at a time, and apart
    from those of other models by `part`. There, what is durable is so on `replicas` replicas too, and with
    `answers_first` only after `Store.sync`. Raises ValueError for another URL, ModuleNotFoundError where the client of
    Redis is not installed.
    """
    if url == "sqlite":
        from dnc_serve.handler.store.sqlite import SQLiteStore

        return SQLiteStore(state_dir)
    scheme = url.partition(":")[0]  # what follows may hold a password
    if scheme not in SCHEMES:
        raise ValueError(f"store {scheme!r} is unknown: expected sqlite, or {EXPECTED}")
    try:
        from dnc_serve.handler.store.redis import RedisStore
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError("a store in Redis needs its client: pip install 'dnc-serve[redis]'") from exc
    return RedisStore(url, owner, lease_s, part, replicas=replicas, answers_first=answers_first)
