"""A session that is being made is shown to nobody before it is as durable as promised, and several may ask for it."""

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.requests import Delete
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.artifact import Artifact
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.harness import EngineHarness, adopting_engine, running_engine

REQUEST = pb.CreateSessionRequest(session_id="s", allow_existing=True)


@contextmanager
def no_space(state_dir: Path) -> Iterator[None]:
    """Files of this process can't grow beyond what the store's log has."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((state_dir / "sessions.db-wal").stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def create(harness: EngineHarness, artifact: Artifact) -> pb.CreateSessionResponse:
    """Through the operations, as an endpoint does it; what is answered is in the store."""
    response = await Operations(harness.engine, artifact, "epoch", harness.metrics).create_session(REQUEST, Caller())
    head = harness.engine.journal.store.head("s")
    assert head is not None and head.incarnation == response.session.incarnation
    return response


async def test_of_many_that_ask_for_a_session_in_a_shared_store_one_makes_it_and_all_have_it(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    async with adopting_engine(tiles, artifact, ServeConfig(state_dir=tmp_path)) as harness:
        responses = await asyncio.gather(*(create(harness, artifact) for _ in range(8)))
        assert sorted(response.created for response in responses) == [False] * 7 + [True]
        assert len({response.session.incarnation for response in responses}) == 1


async def test_a_session_is_shown_when_it_is_durable(tiles: TileRunner, artifact: Artifact, tmp_path: Path) -> None:
    async with running_engine(tiles, artifact, ServeConfig(state_dir=tmp_path, durability="sync")) as harness:
        operations = Operations(harness.engine, artifact, "epoch", harness.metrics)
        first = asyncio.ensure_future(create(harness, artifact))
        await asyncio.sleep(0)
        assert harness.engine.table.find("s") is not None
        assert not (await operations.list_sessions(pb.ListSessionsRequest(), Caller())).sessions
        got = asyncio.ensure_future(operations.get_session(pb.GetSessionRequest(session_id="s"), Caller()))
        second = await create(harness, artifact)
        assert first.done() and (await first).created and not second.created
        assert (await got).session.incarnation == second.session.incarnation
        assert len((await operations.list_sessions(pb.ListSessionsRequest(), Caller())).sessions) == 1


@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_a_session_that_can_not_be_made_leaves_what_was_there_before(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, durability: str
) -> None:
    settings = ServeConfig(state_dir=tmp_path, durability=durability)
    async with running_engine(tiles, artifact, settings) as harness:
        session = await harness.create("s")
        await harness.do(session, lambda done: Delete(done, why="idle"))
        with no_space(tmp_path):
            results = await asyncio.gather(*(create(harness, artifact) for _ in range(3)), return_exceptions=True)
        assert [result.reason for result in results if isinstance(result, ServeError)] == ["STORE_UNAVAILABLE"] * 3
        with pytest.raises(ServeError) as refused:
            harness.engine.table.get("s", "")
        assert refused.value.reason == "SESSION_EXPIRED"
        assert len(harness.engine.table) == 0
