"""Connections cut and servers killed under living clients: nothing lost, doubled, or different by a bit."""

import asyncio
import shutil
import signal
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
from tests.client.conftest import ServerProcess, random_inputs
from tests.client.relay import relay_to

Outputs = Callable[[Float32], Float32]
QUICK = Retry(first_wait_s=0.01, longest_wait_s=0.1)


async def in_chunks(inputs: Float32, timesteps: int, pause_s: float = 0.0) -> AsyncIterator[Float32]:
    for start in range(0, len(inputs), timesteps):
        yield inputs[start : start + timesteps]
        await asyncio.sleep(pause_s)


@pytest.mark.parametrize("shared", [False, True], ids=["own stream", "shared stream"])
async def test_streams_go_on_after_cut_connections(address: str, uninterrupted: Outputs, shared: bool) -> None:
    inputs = [random_inputs(seed, 300) for seed in range(4)]
    async with relay_to(address) as relay, AsyncClient(relay.address, retry=QUICK) as client:
        opener = client.multiplex(1) if shared else client
        sessions = [await opener.session() for _ in inputs]

        async def run(session, values) -> Float32:  # type: ignore[no-untyped-def]
            return np.concatenate([outputs async for outputs in session.stream(in_chunks(values, 3, 0.002))])

        async def cut() -> None:
            for nbytes in (200, 1000, 37, 3000, 512):
                await asyncio.sleep(0.05)
                relay.cut_after(nbytes)

        *answered, _ = await asyncio.gather(*map(run, sessions, inputs), cut())
        assert relay.connections > 3
        for session, values, outputs in zip(sessions, inputs, answered, strict=True):
            assert session.position == len(values)
            assert outputs.tobytes() == uninterrupted(values).tobytes()
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
    inputs = random_inputs(2, 400)
    async with AsyncClient(server_process.address, retry=QUICK) as client, client.session("s") as session:

        async def restart() -> None:
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server_process.terminate)
            await asyncio.to_thread(server_process.start)

        restarting = asyncio.create_task(restart())
        answered = [outputs async for outputs in session.stream(in_chunks(inputs, 4, 0.004))]
        await restarting
    assert np.concatenate(answered).tobytes() == uninterrupted(inputs).tobytes()


async def test_a_power_loss_of_the_server_is_invisible(
    small_artifact: Path, tmp_path: Path, uninterrupted: Outputs
) -> None:
    """The state folder is put back to how it was some answered timesteps, and a reset, before."""
    inputs = random_inputs(3, 40)
    server = ServerProcess(small_artifact, tmp_path / "state", sync_interval_ms=60_000)
    server.start()
    try:
        async with AsyncClient(server.address, retry=QUICK) as client, client.session("s") as session:
            answered = [await session.step(inputs[:10])]
            await asyncio.to_thread(server.terminate)
            shutil.copytree(server.state_dir, tmp_path / "synced")
            await asyncio.to_thread(server.start)
            answered += [await session.step(values[None]) for values in inputs[10:20]]
            await session.reset()
            assert session.durable_position <= 10
            await asyncio.to_thread(server.kill)
            shutil.rmtree(server.state_dir)
            shutil.copytree(tmp_path / "synced", server.state_dir)
            await asyncio.to_thread(server.start)
            answered += [await session.step(values[None]) for values in inputs[20:]]
            assert (session.position, session.experience) == (40, 1)
            info = await session.info()
            assert (info.position, info.experience) == (40, 1)
        async with AsyncClient(server.address) as client, client.session() as reference:
            expected = [await reference.step(inputs[:20]), await reference.step(inputs[20:], reset_experience=True)]
    finally:
        server.kill()
    assert np.concatenate(answered).tobytes() == np.concatenate(expected).tobytes()


async def test_what_is_not_kept_any_more_is_told(small_artifact: Path, tmp_path: Path) -> None:
    """Another client comes back after the power loss: it never had what was lost."""
    server = ServerProcess(small_artifact, tmp_path / "state", sync_interval_ms=60_000)
    server.start()
    try:
        async with AsyncClient(server.address, retry=QUICK) as client:
            async with client.session("s") as session:
                await session.step(random_inputs(4, 5))
            await asyncio.to_thread(server.terminate)
            shutil.copytree(server.state_dir, tmp_path / "synced")
            await asyncio.to_thread(server.start)
            async with client.session("s") as session:
                await session.step(random_inputs(5, 5))
            late = await client.session("s")
            await asyncio.to_thread(server.kill)
            shutil.rmtree(server.state_dir)
            shutil.copytree(tmp_path / "synced", server.state_dir)
            await asyncio.to_thread(server.start)
            with pytest.raises(StepGap) as caught:
                await late.step(random_inputs(6, 1))
            assert caught.value.metadata["expected_position"] == "5"
            assert (await late.resync()).position == 5
            await late.step(random_inputs(6, 1))
            assert late.position == 6
    finally:
        server.kill()


@pytest.mark.parametrize("before", ["never there", "deleted once"])
async def test_a_session_that_a_power_loss_took_is_made_again(
    small_artifact: Path, tmp_path: Path, uninterrupted: Outputs, before: str
) -> None:
    """The state folder is put back to how it was before the session was made."""
    inputs = random_inputs(5, 60)
    server = ServerProcess(small_artifact, tmp_path / "state", sync_interval_ms=60_000)
    server.start()
    try:
        if before == "deleted once":
            async with AsyncClient(server.address, retry=QUICK) as client, client.session("s") as session:
                await session.step(inputs)
                await session.delete()
        await asyncio.to_thread(server.terminate)
        shutil.copytree(server.state_dir, tmp_path / "synced")
        await asyncio.to_thread(server.start)
        async with AsyncClient(server.address, retry=QUICK) as client, client.session("s") as session:
            answered = [await session.step(inputs[:10])]
            answered += [await session.step(values[None]) for values in inputs[10:20]]
            await asyncio.to_thread(lose, server, tmp_path / "synced")
            answered += [outputs async for outputs in session.stream(in_chunks(inputs[20:40], 2))]
            await session.reset()
            lost = session.incarnation
            await asyncio.to_thread(lose, server, tmp_path / "synced")
            answered.append(await session.step(inputs[40:]))
            assert (session.position, session.experience) == (60, 1)
            assert session.incarnation != lost
            info = await session.info()
            assert (info.incarnation, info.position, info.experience) == (session.incarnation, 60, 1)
            assert await session.delete()
        async with AsyncClient(server.address) as client, client.session() as reference:
            expected = [await reference.step(inputs[:40]), await reference.step(inputs[40:], reset_experience=True)]
    finally:
        server.kill()
    assert np.concatenate(answered).tobytes() == np.concatenate(expected).tobytes()


def lose(server: ServerProcess, synced: Path) -> None:
    """The server's power, and what was not synced."""
    server.kill()
    shutil.rmtree(server.state_dir)
    shutil.copytree(synced, server.state_dir)
    server.start()


async def test_what_is_seen_right_after_a_power_loss_is_what_was_answered(small_artifact: Path, tmp_path: Path) -> None:
    """Nobody steps in between: whoever looks first gives back to the server what it lost."""
    inputs = random_inputs(13, 20)
    server = ServerProcess(small_artifact, tmp_path / "state", sync_interval_ms=60_000)
    server.start()
    try:
        async with AsyncClient(server.address, retry=QUICK) as client, client.session("s") as session:
            await session.step(inputs[:10])
            await asyncio.to_thread(server.terminate)
            shutil.copytree(server.state_dir, tmp_path / "synced")
            await asyncio.to_thread(server.start)
            for values in inputs[10:]:
                await session.step(values[None])
            await session.reset()
            memory = await session.dump()
            await asyncio.to_thread(lose, server, tmp_path / "synced")
            again = await session.dump()
            assert {name: array.tobytes() for name, array in again.items()} == {
                name: array.tobytes() for name, array in memory.items()
            }
            await asyncio.to_thread(lose, server, tmp_path / "synced")
            copy = await client.import_session("copy", await session.export())
            assert (copy.position, copy.experience) == (20, 1)
            assert (await copy.step(inputs)).tobytes() == (await session.step(inputs)).tobytes()
    finally:
        server.kill()


async def test_a_session_that_a_power_loss_took_is_made_again_for_whoever_looks(
    small_artifact: Path, tmp_path: Path
) -> None:
    inputs = random_inputs(14, 20)
    server = ServerProcess(small_artifact, tmp_path / "state", sync_interval_ms=60_000)
    server.start()
    try:
        await asyncio.to_thread(server.terminate)
        shutil.copytree(server.state_dir, tmp_path / "synced")
        await asyncio.to_thread(server.start)
        async with AsyncClient(server.address, retry=QUICK) as client, client.session("s") as session:
            await asyncio.to_thread(lose, server, tmp_path / "synced")
            assert (await session.info()).position == 0
            await session.step(inputs[:10])
            await session.step(inputs[10:], reset_experience=True)
            await asyncio.to_thread(lose, server, tmp_path / "synced")
            fork = await session.fork()
            assert (fork.position, fork.experience) == (20, 1)
            assert (await fork.step(inputs)).tobytes() == (await session.step(inputs)).tobytes()
    finally:
        server.kill()


async def test_a_session_is_not_made_again_out_of_less_than_all(small_artifact: Path, tmp_path: Path) -> None:
    server = ServerProcess(small_artifact, tmp_path / "state")
    server.start()
    (tmp_path / "nothing").mkdir()
    try:
        async with AsyncClient(server.address, retry=QUICK) as client, client.session("s") as session:
            while session.durable_position < 10:
                await session.step(random_inputs(1, 5))
                await asyncio.sleep(0.02)
            position = session.position
            await asyncio.to_thread(lose, server, tmp_path / "nothing")
            with pytest.raises(SessionNotFound, match="its beginning is not kept by this client any more"):
                await session.step(random_inputs(2, 5))
            assert session.position == position
            assert [one async for one in client.sessions()] == []
    finally:
        server.kill()


async def test_a_session_that_was_deleted_is_not_made_again(address: str) -> None:
    async with AsyncClient(address, retry=QUICK) as client, client.session() as session:
        other = await client.session(session.id)
        await other.delete()
        for _ in range(2):
            with pytest.raises(SessionNotFound, match="deleted"):
                await session.step(random_inputs(1, 5))
        assert [one async for one in client.sessions(session.id)] == []


async def test_a_session_that_somebody_else_made_again_is_left_to_them(small_artifact: Path, tmp_path: Path) -> None:
    server = ServerProcess(small_artifact, tmp_path / "state", sync_interval_ms=60_000)
    server.start()
    (tmp_path / "nothing").mkdir()
    try:
        async with AsyncClient(server.address, retry=QUICK) as client, client.session("s") as session:
            await session.step(random_inputs(1, 5))
            await asyncio.to_thread(lose, server, tmp_path / "nothing")
            async with AsyncClient(server.address) as another, another.session("s") as theirs:
                await theirs.step(random_inputs(2, 3))
                with pytest.raises(SessionReplaced):
                    await session.step(random_inputs(3, 5))
                assert (await theirs.step(random_inputs(4, 3))).shape == (3, 4)
                assert theirs.position == 6
    finally:
        server.kill()


async def test_without_durability_a_restart_ends_sessions(small_artifact: Path, tmp_path: Path) -> None:
    server = ServerProcess(small_artifact, tmp_path / "state", durability="off")
    server.start()
    try:
        async with AsyncClient(server.address, retry=QUICK) as client, client.session("s") as session:
            await session.step(random_inputs(7, 3))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            with pytest.raises(SessionNotFound):
                await session.step(random_inputs(8, 3))
    finally:
        server.kill()


async def test_a_failed_step_may_be_made_again(server_process: ServerProcess, uninterrupted: Outputs) -> None:
    inputs = random_inputs(9, 30)
    async with AsyncClient(server_process.address, retry=QUICK, timeout_s=1.0) as client:
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
    async with AsyncClient(server_process.address, retry=QUICK, timeout_s=1.0) as client:
        session = await client.session("s")
        first = await session.step(inputs[:10])
        server_process.signal(signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded, match="may or may not"):
            await session.step(inputs[10:])
        server_process.signal(signal.SIGCONT)
        second = await session.step(inputs[10:])
        await session.close()
    assert np.concatenate([first, second]).tobytes() == uninterrupted(inputs).tobytes()


async def test_a_cancelled_step_may_be_made_again_but_not_replaced(address: str, uninterrupted: Outputs) -> None:
    inputs = random_inputs(11, 200)
    async with AsyncClient(address) as client, client.session() as session:
        step = asyncio.create_task(session.step(inputs))
        while not session._opened.ledger.durable_position and not step.done():
            await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait([step])
        assert step.cancelled()
        assert session.position == 0
        with pytest.raises(StepConflict):
            await session.step(random_inputs(12, 200))
        outputs = await session.step(inputs)
        await session.delete()
    assert outputs.tobytes() == uninterrupted(inputs).tobytes()
