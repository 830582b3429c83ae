"""Connections cut and servers killed under living clients: nothing lost, doubled, or different by a bit."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.client import (
    AsyncClient,
    DeadlineExceeded,
    Retry,
    SessionNotFound,
    SessionReplaced,
    StepConflict,
    StepGap,
    Unavailable,
)
from dnc_serve.client.arrays import Float32
from dnc_serve.client.session import AsyncSession
from tests.client.relay import relay_to
from tests.handler.harness import random_inputs
from tests.histories.recorder import may_lose
from tests.power import powered
from tests.server_process import ServerProcess
from tests.waiting import until

Outputs = Callable[[Float32], Float32]
QUICK = Retry(first_wait_s=0.01, longest_wait_s=0.1)

pytestmark = pytest.mark.usefixtures("history")


async def in_chunks(inputs: Float32, timesteps: int) -> AsyncIterator[Float32]:
    for start in range(0, len(inputs), timesteps):
        yield inputs[start : start + timesteps]


async def stream_until(happened: "asyncio.Task[None]", session: AsyncSession, seed: int) -> tuple[Float32, Float32]:
    """Streams small chunks until that has happened; all that was sent, and the outputs."""
    sent: list[Float32] = []

    async def chunks() -> AsyncIterator[Float32]:
        while not happened.done():
            sent.append(random_inputs(1000 * seed + len(sent), 3))
            yield sent[-1]
            await asyncio.sleep(0.001)

    outputs = [output async for output in session.stream(chunks())]
    return np.concatenate(sent), np.concatenate(outputs)


@pytest.mark.parametrize("shared", [False, True], ids=["own stream", "shared stream"])
async def test_streams_go_on_after_cut_connections(address: str, uninterrupted: Outputs, shared: bool) -> None:
    async with relay_to(address) as relay, AsyncClient(relay.address, retry=QUICK) as client:
        opener = client.multiplex(1) if shared else client
        sessions = [await opener.session() for _ in range(4)]

        async def cut() -> None:
            for nbytes in (200, 1000, 37, 3000, 512):
                before = relay.cuts
                relay.cut_after(nbytes)
                await until(lambda before=before: relay.cuts > before, "the connection was cut")

        cutting = asyncio.create_task(cut())
        streamed = await asyncio.gather(
            *(stream_until(cutting, session, seed) for seed, session in enumerate(sessions))
        )
        await cutting
        for session, (inputs, outputs) in zip(sessions, streamed, strict=True):
            assert session.position == len(inputs)
            assert outputs.tobytes() == uninterrupted(inputs).tobytes()
            await session.delete()


async def test_lockstep_goes_on_after_kill_9(server_process: ServerProcess, uninterrupted: Outputs) -> None:
    inputs = random_inputs(1, 60)
    answered = []
    async with AsyncClient(server_process.address, retry=QUICK) as client, client.session("s") as session:
        for timestep, values in enumerate(inputs):
            if timestep in (20, 40):
                await asyncio.to_thread(server_process.kill)
                restarted = asyncio.create_task(asyncio.to_thread(server_process.start))
            answered.append(await session.step(values[None]))
            if timestep in (20, 40):
                await restarted
        assert (session.position, session.created) == (60, True)
    assert np.concatenate(answered).tobytes() == uninterrupted(inputs).tobytes()


async def test_a_stream_goes_on_after_a_drain(server_process: ServerProcess, uninterrupted: Outputs) -> None:
    async with AsyncClient(server_process.address, retry=QUICK) as client, client.session("s") as session:

        async def restart() -> None:
            await until(lambda: session.position, "something was answered")
            await asyncio.to_thread(server_process.terminate)
            await asyncio.to_thread(server_process.start)

        restarting = asyncio.create_task(restart())
        inputs, outputs = await stream_until(restarting, session, 2)
        await restarting
    assert outputs.tobytes() == uninterrupted(inputs).tobytes()


async def test_a_power_loss_of_the_server_is_invisible(small_artifact: Path, tmp_path: Path) -> None:
    """It takes some answered timesteps, and a reset."""
    inputs = random_inputs(3, 40)
    async with (
        powered(small_artifact, tmp_path / "state") as server,
        AsyncClient(server.address, retry=QUICK) as client,
        client.session("s") as session,
    ):
        answered = [await session.step(inputs[:10])]
        await server.synced()
        server.hold_syncs()
        answered += [await session.step(values[None]) for values in inputs[10:20]]
        await session.reset()
        assert session.durable_position <= 10
        await asyncio.to_thread(server.lose_power_and_start)
        answered += [await session.step(values[None]) for values in inputs[20:]]
        assert (session.position, session.experience) == (40, 1)
        info = await session.info()
        assert (info.position, info.experience) == (40, 1)
        async with client.session() as reference:
            expected = [await reference.step(inputs[:20]), await reference.step(inputs[20:], reset_experience=True)]
    assert np.concatenate(answered).tobytes() == np.concatenate(expected).tobytes()


async def test_what_is_not_kept_any_more_is_told(small_artifact: Path, tmp_path: Path) -> None:
    """Another client comes back after the power loss: it never had what was lost."""
    async with (
        powered(small_artifact, tmp_path / "state") as server,
        AsyncClient(server.address, retry=QUICK) as client,
    ):
        async with client.session("s") as session:
            await session.step(random_inputs(4, 5))
        await server.synced()
        server.hold_syncs()
        async with client.session("s") as session:
            await session.step(random_inputs(5, 5))
        late = await client.session("s")
        await asyncio.to_thread(server.lose_power_and_start)
        with pytest.raises(StepGap) as caught:
            await late.step(random_inputs(6, 1))
        assert caught.value.metadata["expected_position"] == "5"
        assert (await late.resync()).position == 5
        await late.step(random_inputs(6, 1))
        assert late.position == 6


@pytest.mark.parametrize("before", ["never there", "deleted once"])
async def test_a_session_that_a_power_loss_took_is_made_again(
    small_artifact: Path, tmp_path: Path, before: str
) -> None:
    """Not even that it was made had been synced."""
    inputs = random_inputs(5, 60)
    async with (
        powered(small_artifact, tmp_path / "state") as server,
        AsyncClient(server.address, retry=QUICK) as client,
    ):
        if before == "deleted once":
            async with client.session("s") as session:
                await session.step(inputs)
                await session.delete()
        await server.synced()
        server.hold_syncs()
        async with client.session("s") as session:
            answered = [await session.step(inputs[:10])]
            answered += [await session.step(values[None]) for values in inputs[10:20]]
            await asyncio.to_thread(server.lose_power_and_start, hold_syncs=True)
            answered += [outputs async for outputs in session.stream(in_chunks(inputs[20:40], 2))]
            await session.reset()
            lost = session.incarnation
            await asyncio.to_thread(server.lose_power_and_start)
            answered.append(await session.step(inputs[40:]))
            assert (session.position, session.experience) == (60, 1)
            assert session.incarnation != lost
            info = await session.info()
            assert (info.incarnation, info.position, info.experience) == (session.incarnation, 60, 1)
            assert await session.delete()
        async with client.session() as reference:
            expected = [await reference.step(inputs[:40]), await reference.step(inputs[40:], reset_experience=True)]
    assert np.concatenate(answered).tobytes() == np.concatenate(expected).tobytes()


async def test_what_is_seen_right_after_a_power_loss_is_what_was_answered(small_artifact: Path, tmp_path: Path) -> None:
    """Nobody steps in between: whoever looks first gives back to the server what it lost."""
    inputs = random_inputs(13, 20)
    async with (
        powered(small_artifact, tmp_path / "state") as server,
        AsyncClient(server.address, retry=QUICK) as client,
        client.session("s") as session,
    ):
        await session.step(inputs[:10])
        await server.synced()
        server.hold_syncs()
        for values in inputs[10:]:
            await session.step(values[None])
        await session.reset()
        memory = await session.dump()
        await asyncio.to_thread(server.lose_power_and_start, hold_syncs=True)
        again = await session.dump()
        assert {name: array.tobytes() for name, array in again.items()} == {
            name: array.tobytes() for name, array in memory.items()
        }
        await asyncio.to_thread(server.lose_power_and_start)
        copy = await client.import_session("copy", await session.export())
        assert (copy.position, copy.experience) == (20, 1)
        assert (await copy.step(inputs)).tobytes() == (await session.step(inputs)).tobytes()


async def test_a_session_that_a_power_loss_took_is_made_again_for_whoever_looks(
    small_artifact: Path, tmp_path: Path
) -> None:
    inputs = random_inputs(14, 20)
    async with (
        powered(small_artifact, tmp_path / "state") as server,
        AsyncClient(server.address, retry=QUICK) as client,
    ):
        await server.synced()
        server.hold_syncs()
        async with client.session("s") as session:
            await asyncio.to_thread(server.lose_power_and_start, hold_syncs=True)
            assert (await session.info()).position == 0
            await session.step(inputs[:10])
            await session.step(inputs[10:], reset_experience=True)
            await asyncio.to_thread(server.lose_power_and_start)
            fork = await session.fork()
            assert (fork.position, fork.experience) == (20, 1)
            assert (await fork.step(inputs)).tobytes() == (await session.step(inputs)).tobytes()


def lose_all(server: ServerProcess) -> None:
    """All that the server ever stored."""
    with may_lose(all_of_it=True):
        server.kill()
        shutil.rmtree(server.state_dir)
    server.start()


async def test_a_session_is_not_made_again_out_of_less_than_all(server_process: ServerProcess) -> None:
    async with AsyncClient(server_process.address, retry=QUICK) as client, client.session("s") as session:
        while session.durable_position < 10:  # told with a reply after the next sync
            await session.step(random_inputs(1, 5))
        position = session.position
        await asyncio.to_thread(lose_all, server_process)
        with pytest.raises(SessionNotFound, match="its beginning is not kept by this client any more"):
            await session.step(random_inputs(2, 5))
        assert session.position == position
        assert [one async for one in client.sessions()] == []


async def test_a_session_that_was_deleted_is_not_made_again(address: str) -> None:
    async with AsyncClient(address, retry=QUICK) as client, client.session() as session:
        other = await client.session(session.id)
        await other.delete()
        for _ in range(2):
            with pytest.raises(SessionNotFound, match="deleted"):
                await session.step(random_inputs(1, 5))
        assert [one async for one in client.sessions(session.id)] == []


async def test_a_session_that_somebody_else_made_again_is_left_to_them(small_artifact: Path, tmp_path: Path) -> None:
    async with (
        powered(small_artifact, tmp_path / "state") as server,
        AsyncClient(server.address, retry=QUICK) as client,
    ):
        await server.synced()
        server.hold_syncs()
        async with client.session("s") as session:
            await session.step(random_inputs(1, 5))
            await asyncio.to_thread(server.lose_power_and_start)
            async with AsyncClient(server.address) as another, another.session("s") as theirs:
                await theirs.step(random_inputs(2, 3))
                with pytest.raises(SessionReplaced):
                    await session.step(random_inputs(3, 5))
                assert (await theirs.step(random_inputs(4, 3))).shape == (3, 4)
                assert theirs.position == 6


async def test_without_durability_a_restart_ends_sessions(small_artifact: Path, tmp_path: Path) -> None:
    server = ServerProcess(small_artifact, tmp_path / "state", durability="off")
    server.start()
    try:
        async with AsyncClient(server.address, retry=QUICK) as client, client.session("s") as session:
            await session.step(random_inputs(7, 3))
            with may_lose(all_of_it=True):
                await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            with pytest.raises(SessionNotFound):
                await session.step(random_inputs(8, 3))
    finally:
        server.kill()


async def test_a_failed_step_may_be_made_again(server_process: ServerProcess, uninterrupted: Outputs) -> None:
    inputs = random_inputs(9, 30)
    async with AsyncClient(server_process.address, retry=QUICK, timeout_s=5.0) as client:
        session = await client.session("s")
        first = await session.step(inputs[:10])
        await asyncio.to_thread(server_process.kill)
        with pytest.raises(Unavailable, match="answered up to position 10"):
            await session.step(inputs[10:20])
        assert session.position == 10
        await asyncio.to_thread(server_process.start)
        rest = [await session.step(inputs[10:20]), await session.step(inputs[20:])]
        await session.close()
    assert np.concatenate([first, *rest]).tobytes() == uninterrupted(inputs).tobytes()


async def test_a_frozen_server_is_given_up_in_time(server_process: ServerProcess, uninterrupted: Outputs) -> None:
    inputs = random_inputs(10, 20)
    async with AsyncClient(server_process.address, retry=QUICK, timeout_s=5.0) as client:
        session = await client.session("s")
        first = await session.step(inputs[:10])
        with server_process.frozen(), pytest.raises(DeadlineExceeded, match="may or may not"):
            await session.step(inputs[10:])
        second = await session.step(inputs[10:])
        await session.close()
    assert np.concatenate([first, second]).tobytes() == uninterrupted(inputs).tobytes()


async def test_a_cancelled_step_may_be_made_again_but_not_replaced(address: str, uninterrupted: Outputs) -> None:
    inputs = random_inputs(11, 5_000)
    async with AsyncClient(address) as client:
        while True:  # a busy machine may let all of it be answered before this task has its turn
            session = await client.session()
            step = asyncio.create_task(session.step(inputs))
            while not session._opened.ledger.durable_position and not step.done():
                await asyncio.sleep(0)
            step.cancel()
            await asyncio.wait([step])
            if step.cancelled():
                break
        assert session.position == 0
        with pytest.raises(StepConflict):
            await session.step(random_inputs(12, 5_000))
        outputs = await session.step(inputs)
        await session.delete()
    assert outputs.tobytes() == uninterrupted(inputs).tobytes()
