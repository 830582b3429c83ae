"""Servers that are not there: soon told where none ever was, waited for where one is gone."""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable

import grpc
import pytest

from dnc_serve.client import AsyncClient, Client, Internal, Retry, Unavailable
from dnc_serve.client.arrays import Float32
from tests.client.relay import relay_to
from tests.handler.harness import INPUT_SIZE, random_inputs
from tests.ports import own_port
from tests.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until

NOWHERE = "127.0.0.1:1"
QUICK = Retry(first_wait_s=0.01, longest_wait_s=0.1)


def test_a_wrong_address_is_told_at_once_and_given_up_soon(caplog: pytest.LogCaptureFixture) -> None:
    # Waited for as long as one that is gone, it would never end.
    with Client(NOWHERE, retry=QUICK, connect_timeout_s=0.5, timeout_s=100_000) as client:
        for _ in range(2):
            with pytest.raises(Unavailable, match=rf"no server answers at {NOWHERE}: is `dnc serve` running there\?"):
                client.session("s")
    [warning] = [record for record in caplog.records if record.name == "dnc_serve.client"]
    assert warning.levelno == logging.WARNING
    assert warning.getMessage().startswith(f"{NOWHERE} doesn't answer: is `dnc serve` running there?")


async def test_another_server_is_told_from_a_streaming_door() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}", retry=QUICK) as client:
            with pytest.raises(Internal, match="no streaming endpoint of this version; expected the address"):
                await client.model()
    finally:
        await server.stop(None)


def test_tracebacks_are_short(address: str) -> None:
    def said_by(call: str) -> list[str]:
        script = f"from dnc_serve.client import Client\n{call}\n"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr.splitlines()

    unreachable = said_by(f"Client('{NOWHERE}', connect_timeout_s=0.1).session('s')")
    assert len(unreachable) <= 15, unreachable
    assert unreachable[-1].startswith("dnc_serve.client.errors.Unavailable: UNAVAILABLE: no server answers at")
    refused = said_by(f"Client('{address}').session('never', create=False)")
    assert len(refused) <= 20, refused
    assert refused[-1].endswith("SessionNotFound: SESSION_NOT_FOUND: there is no session 'never'")


async def test_a_server_that_starts_meanwhile_is_found(address: str, caplog: pytest.LogCaptureFixture) -> None:
    port = own_port()
    async with AsyncClient(f"127.0.0.1:{port}", retry=QUICK, connect_timeout_s=PATIENCE_S) as client:
        asked = asyncio.create_task(client.model())
        await until(lambda: "doesn't answer" in caplog.text, "nobody was found")
        async with relay_to(address, port):
            assert (await asked).input_size == INPUT_SIZE


async def test_a_server_that_was_there_is_waited_for_longer(
    server_process: ServerProcess, uninterrupted: Callable[[Float32], Float32], caplog: pytest.LogCaptureFixture
) -> None:
    inputs = random_inputs(1, 20)
    async with AsyncClient(server_process.address, retry=QUICK, connect_timeout_s=0.2) as client:
        session = await client.session("s")
        first = await session.step(inputs[:10])
        await asyncio.to_thread(server_process.kill)
        info = asyncio.create_task(session.info())
        await asyncio.sleep(0.4)  # longer than a server that never answered is waited for
        await asyncio.to_thread(server_process.start)
        assert (await info).position == 10
        second = await session.step(inputs[10:])
        await session.close()
    assert (first.tobytes() + second.tobytes()) == uninterrupted(inputs).tobytes()
    assert [record.name for record in caplog.records if "doesn't answer" in record.message] == ["dnc_serve.client"]


async def test_a_stream_that_breaks_is_told_once(
    server_process: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncClient(server_process.address, retry=QUICK) as client, client.session("s") as session:
        for broken in (1, 2):
            await session.step(random_inputs(2, 3))
            await asyncio.to_thread(server_process.kill)
            step = asyncio.create_task(session.step(random_inputs(3, 3)))
            await until(lambda broken=broken: caplog.text.count("doesn't answer") == broken, "it is told")
            await asyncio.to_thread(server_process.start)
            await step
    assert [record.levelname for record in caplog.records if "doesn't answer" in record.message] == ["WARNING"] * 2


def test_commands_say_whom_they_wait_for_and_end_in_one_line() -> None:
    command = [sys.executable, "-m", "dnc_serve.client.cli", "sessions", "--connect-timeout", "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "DNC_TARGET": NOWHERE}
    )
    assert (done.returncode, done.stdout) == (1, "")
    waiting, told = done.stderr.splitlines()
    assert waiting == f"waiting for {NOWHERE} …"
    assert told.startswith(f"dnc sessions: UNAVAILABLE: no server answers at {NOWHERE}: is `dnc serve` running there?")
