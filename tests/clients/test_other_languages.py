"""Clients in Node.js and Go that have nothing of this project but its contract: they stream, and are killed, or their
server is; each timestep is applied once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from dnc_serve.client import Client
from dnc_serve.handler.arrays import Float32
from tests.clients.other_languages import StreamingClient, client_command
from tests.clients.sequences import NUMBERS, answered
from tests.handler.harness import random_inputs
from tests.server_process import ServerProcess

TIMESTEPS = 60  # fewer than the answers that a server keeps of a session
INPUTS = random_inputs(3, TIMESTEPS)
Start = Callable[..., StreamingClient]


@pytest.fixture(scope="session", params=["node", "go"])
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return client_command(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def start(command: list[str], server: ServerProcess) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(session_id: str, position: int | None = None) -> StreamingClient:
            client = StreamingClient(command, server.address, session_id, position)
            stack.callback(client.kill)
            return client

        yield start


@pytest.fixture(scope="session")
def answers(server: ServerProcess) -> Float32:
    """What the client library is answered."""
    return answered(server.address, INPUTS)


def test_its_server_is_killed_and_it_goes_on(start: Start, server: ServerProcess, answers: Float32) -> None:
    client = start(f"outlives-{next(NUMBERS)}")
    client.send(INPUTS[:30])
    positions, outputs = client.receive(5)
    server.kill()
    client.send(INPUTS[30:])
    server.start()
    more_positions, more_outputs = client.receive(TIMESTEPS - 5)
    assert client.end() == 0
    assert positions + more_positions == list(range(1, TIMESTEPS + 1))
    assert np.array_equal(np.concatenate([outputs, more_outputs]), answers)


def test_it_is_killed_and_another_one_goes_on(start: Start, server: ServerProcess, answers: Float32) -> None:
    name = f"left-{next(NUMBERS)}"
    client = start(name)
    client.send(INPUTS[:40])
    positions, outputs = client.receive(10)
    client.kill()  # of the others some were applied, and some came out that nobody read
    client = start(name, position=10)
    client.send(INPUTS[10:])
    more_positions, more_outputs = client.receive(TIMESTEPS - 10)
    assert client.end() == 0
    assert positions + more_positions == list(range(1, TIMESTEPS + 1))
    assert np.array_equal(np.concatenate([outputs, more_outputs]), answers)
    with Client(server.address) as ours, ours.session(name) as session:
        assert session.info().position == TIMESTEPS
