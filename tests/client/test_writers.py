"""Two who stream the same inputs into one session: one of them is told that they were applied."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.client import AsyncClient, BadRequest, Client, StepConflict
from dnc_serve.client.arrays import Float32
from tests.client.streaming import CHUNKS, TIMESTEPS, inputs_of
from tests.handler.harness import random_inputs
from tests.handler.store.conftest import RedisServer
from tests.server_process import REPOSITORY, STOP_TIMEOUT_S, ServerProcess

Outputs = Callable[[Float32], Float32]


class Streamer:
    """A client in a process of its own, which has opened the session."""

    def __init__(self, address: str, session_id: str, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.client.streaming", address, session_id, str(seed)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.writer_id, self.position = map(int, self.said().split())

    def order(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()

    def said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def streamers() -> Iterator[Callable[[str, str, int], Streamer]]:
    made: list[Streamer] = []

    def make(address: str, session_id: str, seed: int) -> Streamer:
        made.append(Streamer(address, session_id, seed))
        return made[-1]

    yield make
    for streamer in made:
        streamer.kill()


def test_of_two_processes_that_stream_the_same_one_is_told_that_it_was_applied(
    address: str, streamers: Callable[[str, str, int], Streamer]
) -> None:
    both = [streamers(address, "shared-by-mistake", 1) for _ in range(2)]
    assert [streamer.position for streamer in both] == [0, 0]
    for streamer in both:
        streamer.order("stream")
    said = sorted(streamer.said() for streamer in both)
    assert said[0] == str(CHUNKS * TIMESTEPS)
    assert said[1].startswith("STEP_CONFLICT") and "another writer's chunk was applied" in said[1]
    with Client(address) as client, client.session("shared-by-mistake") as session:
        assert session.position == CHUNKS * TIMESTEPS


@pytest.mark.parametrize("shared", [False, True], ids=["own streams", "a shared stream"])
async def test_of_two_handles_in_one_process_one_wins_undisturbed(
    address: str, shared: bool, uninterrupted: Outputs
) -> None:
    """Whichever chunk comes first, nothing that the other has under way slips in between."""
    inputs = inputs_of(2)
    async with AsyncClient(address) as client:
        opener = client.multiplex(1) if shared else client
        for _ in range(10):
            one = await opener.session()
            other = await opener.session(one.id)

            async def run(session) -> Float32 | StepConflict:  # type: ignore[no-untyped-def]
                try:
                    return np.concatenate([outputs async for outputs in session.stream(np.split(inputs, CHUNKS))])
                except StepConflict as error:
                    return error

            ended = await asyncio.gather(run(one), run(other))
            [outputs] = [end for end in ended if not isinstance(end, StepConflict)]
            [refusal] = [end for end in ended if isinstance(end, StepConflict)]
            assert outputs.tobytes() == uninterrupted(inputs).tobytes()
            assert refusal.metadata["position"] == "0"  # what it was answered
            loser = one if isinstance(ended[0], StepConflict) else other
            assert (await loser.resync()).position == len(inputs)
            await loser.step(inputs[:3])
            await one.delete()


@pytest.fixture(params=["sqlite", "redis"])
def stored_server(request: pytest.FixtureRequest, small_artifact: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server to be killed, before either store."""
    with contextlib.ExitStack() as stack:
        settings = {}
        if request.param == "redis":
            (tmp_path / "redis").mkdir()
            redis = RedisServer(tmp_path / "redis")
            stack.callback(redis.kill)
            settings = {"store": redis.url}
        server = ServerProcess(small_artifact, tmp_path / "state", **settings)
        stack.callback(server.kill)
        server.start()
        yield server


@pytest.mark.parametrize("server_dies", [False, True], ids=["client dies", "both die"])
def test_whoever_keeps_the_writer_id_goes_on_for_a_client_that_died(
    stored_server: ServerProcess,
    server_dies: bool,
    streamers: Callable[[str, str, int], Streamer],
    uninterrupted: Outputs,
) -> None:
    inputs = inputs_of(3)
    streamer = streamers(stored_server.address, "s", 3)
    streamer.order("step")
    position = int(streamer.said())
    streamer.order("step")
    assert int(streamer.said()) == 2 * TIMESTEPS  # these outputs die with it
    streamer.kill()
    if server_dies:
        stored_server.kill()
        stored_server.start()
    second, third = inputs[TIMESTEPS : 2 * TIMESTEPS], inputs[2 * TIMESTEPS : 3 * TIMESTEPS]
    with Client(stored_server.address) as client:
        with client.session("s", position=position) as stranger, pytest.raises(StepConflict, match="another writer"):
            stranger.step(second)
        with client.session("s", writer_id=streamer.writer_id, position=position) as heir:
            assert (heir.writer_id, heir.position) == (streamer.writer_id, position)
            outputs = [heir.step(second)]
            assert heir.info().position == 2 * TIMESTEPS  # it was not applied again
            outputs.append(heir.step(third))
            assert heir.position == 3 * TIMESTEPS
    assert np.concatenate(outputs).tobytes() == uninterrupted(inputs[: 3 * TIMESTEPS])[TIMESTEPS:].tobytes()


def test_a_reset_of_a_client_that_died_is_not_made_again(address: str, uninterrupted: Outputs) -> None:
    inputs = random_inputs(4, 8)
    with Client(address) as client:
        lost = client.session()
        lost.step(inputs[:4])
        position, experience = lost.position, lost.experience
        lost.reset("all")
        lost.close()
        stranger = client.session(lost.id, position=position, experience=experience)
        with pytest.raises(StepConflict, match="another writer ended experience 0"):
            stranger.reset("all")
        kept = {"writer_id": lost.writer_id, "position": position, "experience": experience}
        with client.multiplex().session(lost.id, create=False, **kept) as heir:
            heir.reset("all")
            assert heir.info().experience == heir.experience == 1
            assert heir.step(inputs).tobytes() == uninterrupted(inputs).tobytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [("writer_id", 0), ("writer_id", 2**64), ("writer_id", "me"), ("position", -1), ("experience", 1.5)],
)
def test_wrong_writers_and_places_are_named(address: str, name: str, value: object) -> None:
    with Client(address) as client:
        with pytest.raises(BadRequest, match=f"{name} is {value!r}, expected a whole number"):
            client.session("never-made", **{name: value})  # type: ignore[arg-type]
        assert "never-made" not in [info.id for info in client.sessions("never-made")]


def test_every_dnc_step_is_a_writer(address: str, tmp_path: Path) -> None:
    """One that goes on where the other has been finds out; a later one goes on behind both."""
    line = b"1,1,1,1,1\n"
    command = [sys.executable, "-m", "dnc_serve.client.cli", "step", "shared-by-commands", "--target", address]
    dialog = [*command, "--chunk", "1", "--lockstep"]
    with contextlib.ExitStack() as stack:
        one, other = (
            stack.enter_context(
                subprocess.Popen(dialog, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            )
            for _ in range(2)
        )
        for process in (one, other):
            stack.callback(process.kill)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline()
        _, told = one.communicate(line, timeout=60)
        assert one.returncode == 1
        assert (
            b"STEP_CONFLICT: session 'shared-by-commands' stands at 2; at 1 another writer's chunk was applied" in told
        )
        assert other.communicate(timeout=60)[1].endswith(b"1 timesteps, now at position 2\n")
    later = subprocess.run(command, input=line * 3, capture_output=True, timeout=60, env=os.environ, check=True)
    assert later.stderr.endswith(b"3 timesteps, now at position 5\n")
