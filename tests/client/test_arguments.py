"""What is wrong in an argument is told where it comes in, by its name; nothing else happens."""

import asyncio
import datetime
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc_serve.client import (
    TLS,
    AsyncClient,
    BadBlob,
    BadId,
    BadRequest,
    Client,
    ClientClosed,
    InvalidRequest,
    Retry,
    Session,
    Unauthenticated,
    Unavailable,
)
from dnc_serve.client.cli.main import main
from tests.handler.harness import random_inputs

NOWHERE = "127.0.0.1:1"


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.mark.parametrize(
    "target",
    [
        "", " ", "host", "127.0.0.1", "[::1]", "::1", ":8500", "localhost:", "localhost:0", "localhost:99999",
        "localhost:-1", "localhost:+85", "localhost:85.0", "localhost:abc", "localhost: 8500", " localhost:8500",
        "localhost:8500\n", "localhost:8500/", "localhost:8500/path", "http://localhost:8500", "https://host:8500",
        "grpc://host:8500", "user@host:8500", "a:1,b:2", "a:1 b:2", "::1:8500", "[::1:8500", "[nothing]:8500",
        "unix:", None, 5, b"localhost:8500", [], (), [None], ["a:1", ""], [["a:1"]], object(),
    ],
)  # fmt: skip
def test_targets(target: Any) -> None:
    with pytest.raises(ValueError, match=r"^target is .*(expected|without the socket's path)"):
        AsyncClient(target)


@pytest.mark.parametrize(
    "target",
    [
        "localhost:8500", "10.0.0.7:1", "[::1]:8500", "[fe80::1%eth0]:8500", "dns:///localhost:8500",
        "ipv4:127.0.0.1:8500", "ipv6:[::1]:8500", "unix:/tmp/x", "unix:///tmp/x", "a-b.c_d.example:65535",
        ("a:1", "b:2"),
    ],
)  # fmt: skip
def test_targets_that_are_well_written(target: Any) -> None:
    AsyncClient(target)


@pytest.mark.parametrize(
    "setting", ["timeout_s", "connect_timeout_s"]
)  # fmt: skip
@pytest.mark.parametrize(
    "seconds", [None, 0, -1, -0.5, float("nan"), float("inf"), 1e300, 10**400, "5", True, [1], datetime.timedelta(1)]
)
def test_timeouts(setting: str, seconds: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{setting} is .*; expected seconds, more than 0"):
        AsyncClient(NOWHERE, **{setting: seconds})


@pytest.mark.parametrize("seconds", [1, 0.5, np.float32(2), np.int64(3), 1e8])
def test_timeouts_of_every_kind_of_number(address: str, seconds: Any) -> None:
    with Client(address, timeout_s=seconds, connect_timeout_s=seconds) as client:
        client.model()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("secret\n", r"has '\\n' as character 7 of 7"),
        ("sec\r\nret", r"has '\\r' as character 4"),
        ("geheim-für-mich", "has 'ü' as character 9"),
        ("nul\0", "has '.*x00'"),
        ("", "is empty"),
        (" secret", "begins or ends with a blank"),
        (b"secret", "is of type bytes, expected a string"),
        (5, "is of type int"),
        (["secret"], "is of type list"),
    ],
)
def test_tokens(address: str, token: Any, message: str) -> None:
    """And none of them is shown."""
    with pytest.raises(ValueError, match=f"^token {message}") as caught:
        Client(address, token=token)
    assert "secret" not in str(caught.value)
    with Client(address, token=lambda: token) as client, pytest.raises(Unauthenticated, match=message):
        client.model()


def test_what_the_tokens_function_raises_is_told(address: str) -> None:
    tokens = ["a token"] * 3  # for the session, the model, and the stream

    with Client(address, token=tokens.pop, retry=None) as client:
        session = client.session("tokens")
        session.step(random_inputs(1, 1))
        with pytest.raises(Unauthenticated, match="its function raised IndexError"):
            session.info()


@pytest.mark.parametrize("settings", [{"tls": "ca.pem"}, {"tls": 1}, {"tls": {}}, {"retry": True}, {"retry": 3}])
def test_other_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        AsyncClient(NOWHERE, **settings)


@pytest.mark.parametrize("waits", [(0, 1), (-1, 1), (2, 1), (float("nan"), 1), (1, float("inf")), ("1", 2), (None, 1)])
def test_waits(waits: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Retry(*waits)


def test_files_of_tls(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    for tls in (TLS(ca=nothing), TLS(certificate=nothing, key=nothing), TLS(ca=5), TLS(ca="")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected"):
            AsyncClient(NOWHERE, tls=tls)
    with pytest.raises(FileNotFoundError):
        AsyncClient(NOWHERE, tls=TLS(ca=tmp_path / "missing.pem"))


@pytest.mark.parametrize("id", [5, b"bytes", ["list"], 1.5, True, object(), "\ud800", "", "no/such", "ö", "x" * 1000])
def test_ids(client: Client, id: Any) -> None:
    with client.session() as session, client.multiplex() as lane:
        calls: list[Callable[[], Any]] = [
            lambda: client.session(id),
            lambda: client.session(id, create=False),
            lambda: lane.session(id),
            lambda: session.fork(id),
            lambda: client.import_session(id, session.export()),
        ]
        for call in calls:
            with pytest.raises(BadId):
                call()


@pytest.mark.parametrize("flag", ["no", None, 1, 0, [], "True"])
def test_flags(client: Client, flag: Any) -> None:
    for name in ("allow_existing", "create"):
        with pytest.raises(BadRequest, match=f"BAD_REQUEST: {name} is .*expected True or False"):
            client.session("flags", **{name: flag})
    with client.session() as session:
        for name in ("reset_experience", "debug"):
            with pytest.raises(BadRequest, match=f"BAD_REQUEST: {name} is .*expected True or False"):
                session.step(random_inputs(1, 1), **{name: flag})
        assert session.position == session.info().position == 0


POSITIONS = [-1, 1 << 64, 10**30, 1.0, "1", True, [1], float("nan"), np.float32(1), np.bool_(True)]


@pytest.mark.parametrize("position", POSITIONS)
def test_positions(client: Client, position: Any) -> None:
    with client.session() as session:
        session.step(random_inputs(2, 2))
        for call in (session.dump, session.look):
            with pytest.raises(BadRequest, match=r"BAD_REQUEST: position is .*expected a whole number from 0"):
                call(position=position)
        with pytest.raises(BadRequest, match="BAD_REQUEST: position is "):
            session.fork(position=position)


@pytest.mark.parametrize("kind", [int, np.int8, np.uint64, np.int64])
def test_positions_of_every_kind_of_whole_number(client: Client, kind: Callable[[int], Any]) -> None:
    with client.session() as session:
        session.step(random_inputs(2, 2))
        assert session.fork(position=kind(1)).position == 1
        np.testing.assert_equal(session.dump(position=kind(2)), session.dump())


def test_other_arguments(client: Client) -> None:
    with client.session() as session:
        calls: dict[str, Callable[[], Any]] = {
            "names is 'memory'": lambda: session.dump("memory"),
            "names is 5": lambda: session.look(5),  # type: ignore[arg-type]
            "a name is 5": lambda: session.dump([5]),  # type: ignore[list-item]
            "max_cells is 0": lambda: session.look(max_cells=0),
            "max_cells is 1.5": lambda: session.look(max_cells=1.5),  # type: ignore[arg-type]
            "max_cells is 4294967296": lambda: next(session.watch(max_cells=1 << 32)),
            "max_frames_per_second is nan": lambda: next(session.watch(max_frames_per_second=float("nan"))),
            "max_frames_per_second is 'x'": lambda: next(session.watch(max_frames_per_second="x")),  # type: ignore[arg-type]
            "prefix is 5": lambda: next(client.sessions(5)),  # type: ignore[arg-type]
            "prefix is None": lambda: next(client.sessions(None)),  # type: ignore[arg-type]
            "page_size is -1": lambda: next(client.sessions(page_size=-1)),
            "scope is 5": lambda: session.reset(5),  # type: ignore[arg-type]
            "scope is \\[\\]": lambda: session.reset([]),  # type: ignore[arg-type]
            "chunks is of type int": lambda: list(session.stream(5)),  # type: ignore[arg-type]
            "chunks is of type NoneType": lambda: list(session.stream(None)),  # type: ignore[arg-type]
        }
        for message, call in calls.items():
            with pytest.raises(BadRequest, match=f"BAD_REQUEST: {message}"):
                call()
        assert session.step(random_inputs(3, 1)).shape[0] == session.info().position == 1
    for streams in (0, -1, 1.5, "2", None, True):
        with pytest.raises(ValueError, match="streams is"):
            client.multiplex(streams)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda blob: np.frombuffer(blob, np.uint8)])
def test_blobs_of_every_kind(client: Client, kind: Callable[[bytes], Any]) -> None:
    with client.session() as session:
        session.step(random_inputs(4, 3))
        copy = client.import_session(f"{session.id}-copy", kind(session.export()))
        assert copy.position == 3
        copy.delete()


@pytest.mark.parametrize("blob", ["text", None, 5, [1, 2], object(), b"", b"x" * 100, bytearray(10)])
async def test_what_is_no_blob(address: str, blob: Any) -> None:
    """In a task group too, which would swallow a cancellation."""
    async with AsyncClient(address) as client:
        with pytest.raises(BadBlob):
            await client.import_session("no-blob", blob)
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(client.import_session("no-blob", blob))
        assert isinstance(caught.value.exceptions[0], BadBlob)


async def test_a_client_that_is_closed_under_a_call_says_so_in_a_task_group(address: str) -> None:
    """gRPC ends such calls by a cancellation that nobody asked for."""
    client = AsyncClient(address)
    session = await client.session("closed-under-calls")
    frames = session.watch()
    await anext(frames)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(anext(frames))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            await client.close()
    assert isinstance(caught.value.exceptions[0], ClientClosed)


async def test_whoever_is_cancelled_is_cancelled(address: str) -> None:
    async with AsyncClient(address) as client, client.session("cancelled") as session:
        frames = session.watch()
        await anext(frames)
        waiting = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await session.info()


def test_what_is_wrong_reaches_no_server() -> None:
    with Client(NOWHERE, connect_timeout_s=0.1) as client:
        for call in (lambda: client.session(5), lambda: client.import_session(None, b"")):  # type: ignore[arg-type]
            with pytest.raises(InvalidRequest):
                call()
        with pytest.raises(BadId, match=r"^BAD_ID: the session's id is .{1,80}, expected a string$"):
            client.import_session(b"x" * 1000, "copy")  # type: ignore[arg-type]  # in the wrong order
        with pytest.raises(Unavailable):
            client.session("s")


def test_a_multiplex_gives_each_session_its_own(client: Client, address: str) -> None:
    good, bad = random_inputs(5, 3), ["text", None, object(), [[1], [1, 2]], np.ones((2, 5), complex), np.ones((2, 9))]
    with client.multiplex(2) as lane, Client(address) as another:
        inputs: dict[Session, Any] = {lane.session(): good}
        inputs |= {lane.session(): values for values in bad}
        inputs |= {another.session("of-another"): good}
        inputs |= {lane.session(): good}
        outputs = list(lane.step(inputs).values())
        assert [isinstance(one, np.ndarray) for one in outputs] == [True, *[False] * (len(bad) + 1), True]
        assert outputs[0].tobytes() == outputs[-1].tobytes()  # type: ignore[union-attr]
        assert all(isinstance(one, InvalidRequest) for one in outputs[1 : len(bad) + 1])
        assert "another client" in str(outputs[-2])
        for wrong in ([good], None, {"id": good}, {5: good}):
            with pytest.raises(BadRequest, match="expected a mapping of sessions to inputs"):
                lane.step(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "env", "message"),
    [
        (["--target", "localhost:99999"], {}, "with the port '99999'; expected one from 1 to 65535"),
        (["--target", "http://localhost:8500"], {}, "begins with http://; expected host:port"),
        ([], {"DNC_TARGET": "localhost"}, "DNC_TARGET: target is 'localhost'; expected host:port"),
        ([], {"DNC_TARGET": "localhost:8500,there"}, "DNC_TARGET: target is 'there'; expected host:port"),
        (["--target", "a:1,b:2"], {}, r"or a list of several \(`--target` once for each\)"),
        (["--timeout", "nan"], {}, "expected seconds, more than 0"),
        (["--connect-timeout", "-1"], {}, "expected seconds, more than 0"),
        ([], {"DNC_TOKEN": "sec\nret"}, r"the token of DNC_TOKEN has '\\n' as character 4"),
        (["--tls-ca", "pyproject.toml"], {}, "ca is 'pyproject.toml'; expected a PEM file"),
    ],
)
def test_commands_take_them_as_wrong_usage(
    flags: list[str],
    env: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["sessions", *flags])
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)
