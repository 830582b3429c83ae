"""`Client` and `Session` in front of a real server."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from dnc_serve.client import (
    AsyncClient,
    BadBlob,
    BadDtype,
    BadId,
    BadRequest,
    BadShape,
    Client,
    ClientClosed,
    DncError,
    NotFinite,
    Retry,
    SessionError,
    SessionExists,
    SessionNotFound,
    StepConflict,
    Unavailable,
)
from dnc_serve.client.arrays import Float32
from tests.handler.harness import INPUT_SIZE, LAYERS, OUTPUT_SIZE, random_inputs
from tests.waiting import PATIENCE_S

Outputs = Callable[[Float32], Float32]


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_sessions_are_taken_up_where_they_were_left(address: str, uninterrupted: Outputs) -> None:
    inputs = random_inputs(1, 20)
    answered = []
    for part in (inputs[:7], inputs[7:]):
        with Client(address) as client, client.session("comes-back") as session:
            answered.append(session.step(part))
    assert np.concatenate(answered).tobytes() == uninterrupted(inputs).tobytes()
    assert answered[0].shape == (7, OUTPUT_SIZE)
    assert answered[0].dtype == np.float32


def test_long_inputs_are_cut_and_joined(client: Client, uninterrupted: Outputs) -> None:
    """The server takes 64 timesteps at once."""
    inputs = random_inputs(2, 1000)
    with client.session() as session:
        whole = session.step(inputs)
        assert session.position == 1000
    assert whole.shape == (1000, OUTPUT_SIZE)
    with client.session() as session:
        lockstep = np.concatenate([session.step(inputs[start : start + 50]) for start in range(0, 1000, 50)])
    assert whole.tobytes() == lockstep.tobytes()


def test_streams_answer_each_chunk_in_order(client: Client, uninterrupted: Outputs) -> None:
    inputs = random_inputs(3, 500)
    cuts = [0, 1, 3, 10, 150, 151, 300, 500]
    chunks = [inputs[start:end] for start, end in pairwise(cuts)]
    with client.session() as session:
        answered = list(session.stream(iter(chunks)))
        assert session.position == 500
    assert list(map(len, answered)) == list(map(len, chunks))
    assert np.concatenate(answered).tobytes() == uninterrupted(inputs).tobytes()


def test_other_calls_fit_into_a_stream(client: Client) -> None:
    with client.session() as session:
        for number, _ in enumerate(session.stream(random_inputs(4, 90).reshape(30, 3, INPUT_SIZE))):
            if number == 10:
                session.reset()
                between = session.step(random_inputs(5, 1))
                memory = session.dump(["memory"])
        assert between.shape == (1, OUTPUT_SIZE)
        assert memory["memory"].any()
        assert (session.position, session.experience) == (91, 1)


def test_what_a_stream_took_is_applied_even_if_it_is_left(client: Client) -> None:
    taken = 0

    def chunks() -> Iterator[Float32]:
        nonlocal taken
        for chunk in random_inputs(6, 300).reshape(100, 3, INPUT_SIZE):
            taken += 3
            yield chunk

    with client.session() as session:
        first = list(islice(session.stream(chunks()), 2))
        assert list(map(len, first)) == [3, 3]
        session.step(random_inputs(7, 1))
        assert session.position == taken + 1 == session.info().position


async def test_outputs_do_not_wait_for_the_next_chunk(address: str) -> None:
    """A live source of chunks: each is answered although the next is not there yet."""
    answered = asyncio.Event()

    async def chunks():  # type: ignore[no-untyped-def]
        for chunk in random_inputs(8, 4).reshape(4, 1, INPUT_SIZE):
            yield chunk
            await asyncio.wait_for(answered.wait(), PATIENCE_S)
            answered.clear()

    async with AsyncClient(address) as client, client.session() as session:
        async for outputs in session.stream(chunks()):
            assert outputs.shape == (1, OUTPUT_SIZE)
            answered.set()
        assert session.position == 4


async def test_what_a_source_raises_comes_after_its_outputs(address: str) -> None:
    async def chunks():  # type: ignore[no-untyped-def]
        yield random_inputs(9, 2)
        raise OSError("the sensor is gone")

    answered = []
    async with AsyncClient(address) as client, client.session() as session:
        with pytest.raises(OSError, match="sensor"):
            async for outputs in session.stream(chunks()):
                answered.append(outputs)  # noqa: PERF401
        assert (len(answered), session.position) == (1, 2)


def test_tensors_lists_and_other_dtypes_are_inputs(client: Client) -> None:
    inputs = random_inputs(10, 4)
    variants = [inputs, inputs.tolist(), torch.tensor(inputs, requires_grad=True), inputs.astype(np.int8)]
    answers = []
    for variant in variants:
        with client.session() as session:
            answers.append(session.step(variant).tobytes())
    assert len(set(answers)) == 1


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (np.zeros((2, INPUT_SIZE + 1)), BadShape, r"\[2, 6\], expected \[timesteps, 5\]"),
        (np.zeros(INPUT_SIZE), BadShape, r"\[5\]"),
        (np.zeros((0, INPUT_SIZE)), BadShape, "at least 1 timestep"),
        ([[1.0], [1.0, 2.0]], BadShape, "ragged"),
        (np.zeros((1, INPUT_SIZE), complex), BadDtype, "complex"),
        ([["a"] * INPUT_SIZE], BadDtype, "<U1"),
        (np.full((1, INPUT_SIZE), np.nan), NotFinite, "nothing that was sent after it was applied"),
        (np.full((1, INPUT_SIZE), 1e300), NotFinite, "inf"),
    ],
)
def test_bad_inputs_are_refused_and_change_nothing(
    client: Client, inputs: object, error: type[DncError], message: str
) -> None:
    with client.session() as session:
        session.step(random_inputs(11, 3))
        with pytest.raises(error, match=message):
            session.step(inputs)
        assert session.position == 3 == session.info().position
        assert session.step(random_inputs(12, 2)).shape == (2, OUTPUT_SIZE)


def test_a_bad_chunk_in_a_stream_leaves_what_came_before(client: Client) -> None:
    chunks = list(random_inputs(13, 30).reshape(10, 3, INPUT_SIZE))
    chunks[6] = chunks[6] * np.nan
    answered: list[Float32] = []
    with client.session() as session:
        with pytest.raises(NotFinite):
            answered.extend(session.stream(chunks))
        assert (len(answered), session.position, session.info().position) == (6, 18, 18)
        session.step(chunks[7])


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_nothing_is_sent_in_the_place_of_what_failed(address: str, asynchronous: bool) -> None:
    """The source goes on after a bad chunk, before its refusal has reached anybody."""
    chunks = list(random_inputs(13, 12).reshape(4, 3, INPUT_SIZE))
    chunks[1] = chunks[1] * np.nan
    answered = []

    async def source():  # type: ignore[no-untyped-def]
        for number, chunk in enumerate(chunks):
            yield chunk
            await asyncio.sleep(0.1 if number == 1 else 0)

    async with AsyncClient(address) as client, client.session() as session:
        stream = session.stream(source() if asynchronous else iter(chunks))
        with pytest.raises(NotFinite):
            async for outputs in stream:
                answered.append(outputs)
                await asyncio.sleep(0.3)
        assert (len(answered), session.position, (await session.info()).position) == (1, 3, 3)
        await session.step(chunks[2])


async def test_a_failure_that_nobody_waited_for_is_told_with_the_next_call(address: str) -> None:
    async with AsyncClient(address) as client, client.session() as session:
        session.enter(np.full((1, INPUT_SIZE), np.nan))
        await asyncio.sleep(0.3)
        with pytest.raises(NotFinite):
            await session.step(random_inputs(13, 1))
        await session.step(random_inputs(13, 1))
        assert session.position == 1


def test_resets(client: Client) -> None:
    inputs = random_inputs(14, 6)
    with client.session() as session:
        fresh = session.step(inputs)
        session.reset()
        assert (session.experience, session.position) == (1, 6)
        assert not session.dump(["memory"])["memory"].any()
        after_reset = session.step(inputs)
        assert after_reset.tobytes() != fresh.tobytes(), "the controller's state stays"
        session.reset("all")
        assert session.step(inputs).tobytes() == fresh.tobytes()
        with pytest.raises(BadRequest, match="scope"):
            session.reset("memory")  # type: ignore[arg-type]
    with client.session() as session:
        session.step(inputs)
        assert session.step(inputs, reset_experience=True).tobytes() == after_reset.tobytes()
        assert session.experience == 1


def test_debug_shows_memory_at_each_timestep(client: Client) -> None:
    with client.session() as session:
        outputs, debug = session.step(random_inputs(15, 70), debug=True)
        memory = session.dump(flat=True)
    assert outputs.shape == (70, OUTPUT_SIZE)
    assert set(debug) <= set(memory)
    for name, array in debug.items():
        assert array.shape == (70 * LAYERS, memory[name].shape[1])
        np.testing.assert_allclose(array[-1], memory[name][0], atol=1e-6)  # TorchScript looks, and the kernel steps


def test_forks_and_earlier_positions(client: Client) -> None:
    inputs = random_inputs(16, 10)
    with client.session() as session:
        session.step(inputs[:5])
        then = session.dump()
        session.step(inputs[5:])
        np.testing.assert_equal(session.dump(position=5), then)
        fork = session.fork()
        past = session.fork("past-of-" + session.id, position=5)
        assert (fork.position, past.position) == (10, 5)
        past.step(inputs[5:])
        following = random_inputs(17, 3)
        assert len({each.step(following).tobytes() for each in (session, fork, past)}) == 1


def test_export_and_import(client: Client) -> None:
    with client.session() as session:
        session.step(random_inputs(18, 5))
        blob = session.export()
        copy = client.import_session(session.id + "-copy", blob)
        assert copy.position == 5
        following = random_inputs(19, 3)
        assert session.step(following).tobytes() == copy.step(following).tobytes()
        with pytest.raises(BadBlob):
            client.import_session(session.id + "-cut", blob[:-1])


def test_lists_looks_and_ends(client: Client) -> None:
    ids = [f"listed-{number:03}" for number in range(25)]
    for session_id in ids:
        client.session(session_id).close()
    assert [info.id for info in client.sessions("listed-", page_size=10)] == ids
    session = client.session(ids[0])
    assert session.info().tier in ("slot", "host", "store")
    assert session.delete()
    with pytest.raises(SessionNotFound):
        client.session(ids[0], create=False)
    with pytest.raises(SessionExists):
        client.session(ids[1], allow_existing=False)
    with pytest.raises(BadId):
        client.session("no/such id\n")
    assert (client.model().input_size, client.model().output_size) == (INPUT_SIZE, OUTPUT_SIZE)


def test_things_say_what_they_are(client: Client, address: str) -> None:
    assert repr(client) == f"<Client of {address}>"
    with client.session("said") as session:
        session.step(random_inputs(1, 3))
        assert repr(session) == "<Session 'said', position 3, experience 0>"
        assert repr(session.info()).startswith("<SessionInfo 'said', position 3, experience 0, ")
        assert "memory [1, 12, 6]" in repr(session.look(["memory"]))
    assert repr(session) == "<Session 'said', position 3, experience 0, left>"
    assert repr(client.model()).startswith(f"<ModelInfo {client.model().name}: float32[{INPUT_SIZE}] → ")
    with client.multiplex() as multiplex:
        assert repr(multiplex) == f"<Multiplex of {address}>"
    client.close()
    assert repr(client) == f"<Client of {address}, closed>"
    assert repr(AsyncClient("elsewhere:1").session("unopened")) == "<AsyncSession 'unopened', not open>"


def test_watching(client: Client) -> None:
    with client.session() as session:
        frames = session.watch(["memory"], max_frames_per_second=100)
        assert next(frames).position == 0
        session.step(random_inputs(20, 3))
        frame = next(frames)
        assert (frame.position, list(frame.arrays)) == (3, ["memory"])


@pytest.mark.parametrize("streams", [1, 4])
def test_many_sessions_on_few_streams(client: Client, uninterrupted: Outputs, streams: int) -> None:
    inputs = {number: random_inputs(number, 12) for number in range(40)}
    with client.multiplex(streams) as lane:
        sessions = {lane.session(): values for values in inputs.values()}
        outputs = lane.step(sessions)
        for session, values in sessions.items():
            answered = outputs[session]
            assert isinstance(answered, np.ndarray)
            assert answered.tobytes() == uninterrupted(values).tobytes()
        first, second = islice(sessions, 2)
        mixed = lane.step({first: np.full((1, INPUT_SIZE), np.nan), second: inputs[0]})
        assert isinstance(mixed[first], NotFinite)
        assert isinstance(mixed[second], np.ndarray)


def test_one_client_serves_many_threads(client: Client, uninterrupted: Outputs) -> None:
    inputs = random_inputs(21, 60)
    answered: dict[int, bytes] = {}

    def work(number: int) -> None:
        with client.session() as session:
            parts = [session.step(inputs[start : start + 2]) for start in range(0, 60, 2)]
        answered[number] = np.concatenate(parts).tobytes()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(answered.values()) == {uninterrupted(inputs).tobytes()}
    assert len(answered) == 8


def test_someone_else_in_the_session_is_noticed(address: str) -> None:
    with Client(address) as one, Client(address) as other:
        mine, theirs = one.session("shared"), other.session("shared")
        theirs.step(random_inputs(22, 4))
        with pytest.raises(StepConflict):
            mine.step(random_inputs(23, 2))
        assert mine.resync().position == 4
        mine.step(random_inputs(23, 2))
        assert mine.position == 6


def test_closed_clients_and_forked_ones_say_so(address: str) -> None:
    client = Client(address)
    session = client.session()
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            session.step(random_inputs(24, 1))
        except ClientClosed as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert "start processes with spawn" in pipe.read()
    os.waitpid(child, 0)
    session.step(random_inputs(24, 1))
    session.close()
    with pytest.raises(ClientClosed):
        session.step(random_inputs(24, 1))
    client.close()
    with pytest.raises(ClientClosed):
        client.session()


def test_closing_again_is_harmless(address: str) -> None:
    with Client(address) as client:
        client.session().step(random_inputs(26, 2))
        with ThreadPoolExecutor(4) as pool:
            for closed in [pool.submit(client.close) for _ in range(4)]:
                closed.result(10)
        client.close()


async def test_closing_an_asynchronous_client_again_is_harmless(address: str) -> None:
    async with AsyncClient(address) as client:
        session = await client.session()
        await session.step(random_inputs(27, 2))
        await asyncio.gather(client.close(), client.close())
        await client.close()
        with pytest.raises(ClientClosed):
            await session.step(random_inputs(27, 1))


async def test_sessions_are_opened_before_use(address: str) -> None:
    async with AsyncClient(address) as client:
        with pytest.raises(SessionError, match="not open"):
            await client.session().step(random_inputs(25, 1))


@pytest.mark.parametrize("retry", [None, Retry()])
def test_no_server_there(retry: Retry | None) -> None:
    with Client("127.0.0.1:1", timeout_s=0.5, retry=retry) as client, pytest.raises(Unavailable):
        client.model()


@pytest.mark.parametrize("settings", [{"targets": []}, {"targets": ""}, {"timeout_s": 0}, {"connect_timeout_s": -1}])
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        AsyncClient(**settings)  # type: ignore[arg-type]
