"""A stream answers every message and ends, whatever a message meets."""

import asyncio
import gc
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from dnc_serve.client import Client
from dnc_serve.handler.api.ordered_stream import UNANSWERED_BYTES, OpenStreams, OrderedStream
from dnc_serve.handler.engine.maintenance import Garbage
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import chunk, error_info, open_door
from tests.handler.harness import random_inputs
from tests.handler.store.conftest import RedisServer
from tests.waiting import wait_until


def test_what_nobody_expected_is_answered_and_the_stream_goes_on(
    artifact_folder: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    with open_door(artifact_folder, tmp_path / "one", store=redis_server.url) as door:
        door.create("strange")
    with redis_server.client() as client:
        client.hset("dnc:{strange}:head", "position", "nowhere")
    with open_door(artifact_folder, tmp_path / "two", store=redis_server.url) as door:
        door.create("sound")
        answers = door.stream(
            [
                pb.StreamRequest(chunk=chunk("strange", random_inputs(0, 1), request_id=1)),
                pb.StreamRequest(reset=pb.Reset(session_id="strange", request_id=2)),
                pb.StreamRequest(dump=pb.Dump(session_id="strange", request_id=3)),
                pb.StreamRequest(chunk=chunk("sound", random_inputs(0, 2), request_id=4)),
            ]
        )
    refusals = {one.error.request_id: error_info(one.error.status).reason for one in answers if one.HasField("error")}
    assert refusals == {1: "INTERNAL", 2: "INTERNAL", 3: "INTERNAL"}
    assert [one.chunk.position for one in answers if one.HasField("chunk")] == [2]


def test_a_reply_from_before_the_first_batch_is_not_lost_among_those_in_batches(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        door.create("s")
        operations = door.server._models.default
        dump, session = operations.dump, operations.engine.table.find("s")
        assert session is not None

        async def held_up(*arguments: Any) -> Any:
            while session.position < 3:  # what is sent behind it has been applied, and its replies wait
                await asyncio.sleep(0)
            return await dump(*arguments)

        monkeypatch.setattr(operations, "dump", held_up)
        one, two, three = (chunk("s", random_inputs(seed, 1), request_id=seed) for seed in (1, 2, 3))
        answers = door.stream(
            [
                pb.StreamRequest(chunk=one),
                pb.StreamRequest(dump=pb.Dump(session_id="s", names=["memory"], position=1)),
                pb.StreamRequest(chunk=two),
                pb.StreamRequest(batch=pb.RequestBatch(requests=[pb.StreamRequest(chunk=three)])),
            ]
        )
    responses = [each for answer in answers for each in (answer.batch.responses or [answer])]
    assert [each.chunk.position for each in responses if each.HasField("chunk")] == [1, 2, 3]


def test_a_stream_that_has_ended_is_let_go_without_a_collection(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lives is set aside from collections: in a cycle, a stream and its session would stay for minutes."""
    monkeypatch.setattr(Garbage, "settle", lambda self: None)
    with (
        open_door(artifact_folder, tmp_path) as door,
        Client(door.addresses.grpc) as client,
        client.session() as session,
    ):
        gc.disable()
        try:
            session.step(random_inputs(1, 2))
            [stream] = map(weakref.ref, door.server._streams._open)
            session.close()
            wait_until(lambda: stream() is None, "nothing refers to the stream any more", patience_s=20.0)
        finally:
            gc.enable()


def test_streams_of_other_workers_share_the_bytes_that_may_be_unanswered() -> None:
    """They are counted where they came in; what nobody reads of them waits here."""
    streams = OpenStreams(at_most=1)
    with ExitStack() as stack:
        for _ in range(64):
            register = stack.enter_context(streams.open(bounded=False))
            register(cast(OrderedStream, object()))
        assert streams.share_bytes * 64 == UNANSWERED_BYTES
        assert len(streams) == 0
