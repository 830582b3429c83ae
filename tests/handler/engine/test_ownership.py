"""How long a server believes that a session of a shared store is its own."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine import ownership
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.metrics import Metrics
from dnc_serve.handler.store.contract import End, Lease
from dnc_serve.model.artifact import Artifact
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.harness import SharedByNobody, engine_over

TTL_S, ANSWER_S = 60.0, 7.0


class SlowStore(SharedByNobody):
    """Takes its time to answer, in which leases run on."""

    now = 1000.0

    def acquire(self, session_id: str) -> Lease:
        self.now += ANSWER_S
        return Lease(session_id, 1, TTL_S)

    def renew(self, leases: Sequence[Lease]) -> list[Lease | None]:
        self.now += ANSWER_S
        return [*leases]


async def test_a_lease_is_counted_from_before_it_was_asked_for_and_ends_a_margin_early(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore(tmp_path)
    monkeypatch.setattr(ownership, "_now", lambda: store.now)
    async with engine_over(store, tiles, artifact, ServeConfig(state_dir=tmp_path), "sync") as harness:
        owned, session = harness.engine.ownership, harness.engine.table.new_session("s", "", 1)

        async def begin() -> None:
            await owned.begin(session, None)

        asks: list[Callable[[], Awaitable[None]]] = [begin, owned._renew, owned._renew]
        for ask in asks:
            until = store.now + TTL_S * (1 - ownership.MARGIN)
            await ask()
            store.now = until
            assert not owned.holds(session)
            store.now = until - 0.001
            assert owned.holds(session)
            owned.check(session)
        store.now = until
        with pytest.raises(StoreUnavailable, match="the lease of session 's' ran out"):
            owned.check(session)
        assert session.ended


async def test_a_session_whose_lease_ran_out_is_asked_of_the_store_before_anything_is_told_of_it(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was suspended said how a session stood there, though it had ended elsewhere meanwhile."""
    store = SlowStore(tmp_path)
    monkeypatch.setattr(ownership, "_now", lambda: store.now)
    async with engine_over(store, tiles, artifact, ServeConfig(state_dir=tmp_path), "sync") as harness:
        operations = Operations(harness.engine, artifact, "epoch", Metrics())
        request, caller = pb.CreateSessionRequest(session_id="s", allow_existing=True), Caller()
        first = await operations.create_session(request, caller)
        again = await operations.create_session(request, caller)
        assert first.created and not again.created
        ended = End("s", first.session.incarnation, "deleted", at=store.now)
        assert store.commit([ended]) == [None]  # as another server does it
        store.now += TTL_S
        after = await operations.create_session(request, caller)
        assert after.created and after.session.incarnation != first.session.incarnation
