"""Handles that are dropped and never closed: they give their streams back, and nothing keeps them."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dnc_serve.client import AsyncClient, AsyncSession, Client, QueueFull, Session
from tests.handler.door import Door, open_door
from tests.handler.harness import random_inputs
from tests.waiting import wait_until

INPUTS = random_inputs(1, 2)
MOST = 4
MANY = 5 * MOST


@pytest.fixture(scope="module")
def narrow(small_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A server that takes few streams."""
    with open_door(small_artifact, tmp_path_factory.mktemp("narrow"), max_streams=MOST) as door:
        yield door


def test_a_server_that_takes_no_more_streams_says_what_to_do(narrow: Door) -> None:
    with Client(narrow.addresses.grpc, retry=None) as client:
        held = [client.session() for _ in range(MOST + 1)]
        for session in held[:MOST]:
            session.step(INPUTS)
        with pytest.raises(QueueFull, match="close sessions that nobody uses") as caught:
            held[MOST].step(INPUTS)
        assert caught.value.metadata["limit"] == str(MOST)


def dropped(client: Client, number: int) -> None:
    client.session(f"dropped-{number}").step(INPUTS)


def left_in_a_stream(client: Client, number: int) -> None:
    next(client.session(f"left-{number}").stream([INPUTS] * 3))


def failed(client: Client, number: int) -> None:
    """The traceback keeps the handle until it is gone itself."""
    with pytest.raises(ZeroDivisionError):
        print(client.session(f"failed-{number}").step(INPUTS), 1 // 0)


def in_a_cycle(client: Client, number: int) -> None:
    session = client.session(f"cycle-{number}")
    session.step(INPUTS)
    session.itself = session  # type: ignore[attr-defined]
    del session
    gc.collect()


def in_a_thread(client: Client, number: int) -> None:
    thread = threading.Thread(target=dropped, args=(client, number))
    thread.start()
    thread.join()


def taken_up_again(client: Client, number: int) -> None:
    session = client.session(f"again-{number}")
    session.step(INPUTS)
    session.resync()
    session.step(INPUTS)


def forked(client: Client, number: int) -> None:
    session = client.session(f"source-{number}")
    session.step(INPUTS)
    session.fork(f"fork-{number}").step(INPUTS)


@pytest.mark.parametrize(
    "use", [dropped, left_in_a_stream, failed, in_a_cycle, in_a_thread, taken_up_again, forked]
)  # fmt: skip
def test_dropped_handles_give_their_streams_back(narrow: Door, use: Callable[[Client, int], None]) -> None:
    with Client(narrow.addresses.grpc) as client:
        for number in range(MANY):
            use(client, number)


async def test_dropped_asynchronous_handles_do_too(narrow: Door) -> None:
    async with AsyncClient(narrow.addresses.grpc) as client:
        for number in range(MANY):
            session = await client.session(f"asynchronous-{number}")
            await session.step(INPUTS)
        tasks = [asyncio.create_task(one_step(client, number)) for number in range(MANY)]
        await asyncio.gather(*tasks)


async def one_step(client: AsyncClient, number: int) -> None:
    await (await client.session(f"task-{number}")).step(INPUTS)


def test_dropped_clients_do_too(narrow: Door) -> None:
    for number in range(MANY):
        Client(narrow.addresses.grpc).session(f"client-{number}").step(INPUTS)


def test_what_a_dropped_handle_sent_is_applied(address: str) -> None:
    with Client(address) as client:
        session: Session | None = client.session("sent-and-dropped")
        assert session is not None
        taken = iter([INPUTS] * 8)
        for _ in session.stream(taken):
            break
        sent = 8 - len(list(taken))
        session = None
        with client.session("sent-and-dropped", create=False) as again:
            wait_until(lambda: again.info().position == sent * len(INPUTS), "all that was sent is applied")
            again.resync()
            again.step(INPUTS)


@pytest.mark.parametrize("shared", [False, True], ids=["own stream", "shared stream"])
async def test_nothing_keeps_a_dropped_or_closed_handle(address: str, shared: bool) -> None:
    async with AsyncClient(address) as client:
        opener = client.multiplex(2) if shared else client
        kept = await opener.session("kept")
        handles: list[weakref.ref[AsyncSession]] = []
        deliveries: list[weakref.ref[object]] = []
        for number in range(20):
            session = await opener.session(f"handle-{number}")
            await session.step(INPUTS)
            handles.append(weakref.ref(session))
            deliveries.append(weakref.ref(session._opened))
            if number % 2:
                await session.close()
            del session
        await kept.step(INPUTS)
        gc.collect()
        assert [handle() for handle in handles] == [None] * 20
        async with asyncio.timeout(30):
            while any(delivery() is not None for delivery in deliveries):
                await asyncio.sleep(0.01)
                gc.collect()


async def test_a_multiplex_forgets_closed_sessions(address: str) -> None:
    async with AsyncClient(address) as client, client.multiplex() as lane:
        held = []
        for number in range(20):
            session = await lane.session(f"closed-{number}")
            await session.step(INPUTS)
            await session.close()
            held.append(session)
        assert not lane.handles
        await lane.session("last")  # it looks for a stream that is open
        assert not any(stream.is_open for stream in lane.streams.values())
