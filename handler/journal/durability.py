"""Which store a server of this configuration keeps its sessions in."""

from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.journal.stores import open_store
from dnc_serve.handler.journal.stores.contract import End, Store

SPILL_FOLDER = "spill"


def make_store(config: ServeConfig, owner: str) -> Store:
    """The store, not opened yet.

    With durability off nothing is recorded: states that find no room in memory go to a store of their own, and what an
    earlier run recorded is left alone. `owner` is the address that a shared store sends clients of our sessions to.
    """
    if config.durability == "off":
        return open_store("sqlite", config.state_dir / SPILL_FOLDER)
    return open_store(config.store, config.state_dir, owner=owner, lease_s=config.lease_s)


def empty(store: Store) -> None:
    """Forgets all sessions of an open store: a spill is of no use to the next run."""
    now = CLOCK.now()
    store.commit([End(head.session_id, head.incarnation, "deleted", now) for head in store.heads() if not head.ended])
    store.forget_tombstones(now + 1.0, 0)
