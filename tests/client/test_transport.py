"""Which server a session's calls go to."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from dnc_serve.client import TLS, AsyncClient, Retry, SessionMoved
from dnc_serve.client.transport import Hosts
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.reasons import DOMAIN
from tests.handler.harness import INPUT_SIZE, OUTPUT_SIZE, random_inputs

QUICK = Retry(first_wait_s=0.01, longest_wait_s=0.05)


class NotTheOwner(dnc_pb2_grpc.DncServiceServicer):
    """A server whose sessions are all owned by another one."""

    def __init__(self, owner: str) -> None:
        info = error_details_pb2.ErrorInfo(reason="SESSION_MOVED", domain=DOMAIN, metadata={"owner": owner})
        detail = any_pb2.Any()
        detail.Pack(info)
        self.status = status_pb2.Status(
            code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message="not here", details=[detail]
        )
        self.asked: list[str] = []
        self.metadata: dict[str, str] = {}

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """All servers of one store serve the same model."""
        return pb.GetModelResponse(
            input_size=INPUT_SIZE, output_size=OUTPUT_SIZE, max_chunk_timesteps=64, max_in_flight_chunks=64
        )

    async def WatchMemory(self, request: pb.WatchMemoryRequest, context: Any) -> None:
        await self.CreateSession(request, context)

    async def CreateSession(self, request: Any, context: Any) -> None:
        self.asked.append(request.session_id)
        self.metadata = dict(context.invocation_metadata())
        trailer = (("grpc-status-details-bin", self.status.SerializeToString()),)
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.status.message, trailer)

    async def Stream(self, requests: AsyncIterator[pb.StreamRequest], context: Any) -> AsyncIterator[pb.StreamResponse]:
        async for request in requests:
            self.asked.append(request.chunk.session_id)
            yield pb.StreamResponse(
                error=pb.StreamError(
                    session_id=request.chunk.session_id, request_id=request.chunk.request_id, status=self.status
                )
            )


@pytest.fixture
async def elsewhere(address: str) -> AsyncIterator[tuple[str, NotTheOwner]]:
    """The address of a server that sends everybody to the real one."""
    servicer = NotTheOwner(address)
    server = grpc.aio.server()
    dnc_pb2_grpc.add_DncServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", servicer
    await server.stop(None)


def id_that_begins_at(target: str, targets: list[str]) -> str:
    hosts = Hosts(targets, None, None)
    return next(name for name in map(str, range(1000)) if hosts.route(name).target == target)


async def test_the_owner_is_followed_among_known_hosts(address: str, elsewhere: tuple[str, NotTheOwner]) -> None:
    other, servicer = elsewhere
    targets = [other, address]
    async with AsyncClient(targets, token="secret", retry=QUICK) as client:
        session = await client.session(id_that_begins_at(other, targets))
        assert servicer.asked == [session.id]
        assert servicer.metadata["authorization"] == "Bearer secret"
        assert servicer.metadata["x-dnc-session"] == session.id
        await session.step(random_inputs(1, 3))
        # It moves in the midst of a stream.
        session._route.go_on(away_from=address)
        session._opened._drop_stream()
        await session.step(random_inputs(2, 3))
        assert servicer.asked == [session.id] * 2
        assert (session.position, (await session.info()).position) == (6, 6)
        session._route.go_on(away_from=address)
        frames = session.watch(["usage_vector"])
        assert (await anext(frames)).position == 6
        assert servicer.asked == [session.id] * 3
        await frames.aclose()
        await session.delete()


async def test_an_unknown_owner_is_named_to_a_proxy_and_gone_to_by_nobody(
    address: str, elsewhere: tuple[str, NotTheOwner]
) -> None:
    other, servicer = elsewhere
    async with AsyncClient(other, retry=QUICK, timeout_s=5.0) as client:
        with pytest.raises(SessionMoved, match="none of this client's targets") as caught:
            await client.session("x")
    assert caught.value.metadata["owner"] == address
    assert set(servicer.asked) == {"x"}
    assert len(servicer.asked) > 1
    assert servicer.metadata["x-dnc-owner"] == address


async def test_a_dead_host_is_passed_over(address: str) -> None:
    targets = ["127.0.0.1:1", address]
    async with AsyncClient(targets, retry=QUICK) as client:
        session = await client.session(id_that_begins_at("127.0.0.1:1", targets))
        assert len(await session.step(random_inputs(3, 3))) == 3
        session._route.go_on(away_from=address)
        frames = session.watch(["usage_vector"])
        assert (await anext(frames)).position == 3
        await frames.aclose()
        await session.delete()


def test_sessions_spread_over_hosts_and_stay() -> None:
    targets = ["a:1", "b:1", "c:1"]
    first = [Hosts(targets, None, None).route(str(number)).target for number in range(300)]
    assert first == [Hosts(targets[::-1], None, None).route(str(number)).target for number in range(300)]
    assert all(first.count(target) > 50 for target in targets)


def test_half_a_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        TLS(certificate="mine.pem").credentials()


def test_odd_ids_are_no_metadata() -> None:
    hosts = Hosts("a:1", lambda: "fresh", None)
    assert hosts.metadata("kä\n") == (("authorization", "Bearer fresh"),)
