"""Faults, each provoked on a real server of its own for as long as the context lasts.

Where the true cause would be a broken device or disk, the part of this process that speaks to it is broken instead:
everything above it, the metrics included, is the real thing. A context gives the address of the server's metrics.
"""

import contextlib
import itertools
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import numpy as np

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.probe import is_open
from dnc_serve.handler.server import DncServer
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, chunk, open_door
from tests.handler.harness import INPUT_SIZE, random_inputs
from tests.ports import own_port
from tests.programs import program
from tests.waiting import wait_until

SCRAPED_S = 1.2  # longer than from one scrape to the next


@contextmanager
def again_and_again(action: Callable[[], object]) -> Iterator[None]:
    """Repeats the action in a thread; refusals, which are what faults lead to, don't end it."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            with contextlib.suppress(grpc.RpcError):
                action()
            over.wait(0.1)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def send(door: Door, session_id: str, chunks: int, inputs: Any) -> None:
    """Sends so many chunks at once on one stream."""
    door.stream(pb.StreamRequest(chunk=chunk(session_id, inputs)) for _ in range(chunks))


@contextmanager
def gone(artifact: Path, folder: Path) -> Iterator[str]:
    """A server that has ended."""
    with open_door(artifact, folder) as door:
        address = door.addresses.metrics
    yield address


@contextmanager
def crash_loop(artifact: Path, folder: Path) -> Iterator[str]:
    """A server that starts, serves a little and ends, on the same port each time."""
    with open_door(artifact, folder) as door:
        door.create("s")
        address = door.addresses.metrics
    config = ServeConfig(state_dir=folder, port=0, metrics_port=int(address.rpartition(":")[2]))

    def one_life() -> None:
        server = DncServer(config, [artifact], "cpu")
        door = Door(server.start(), server)
        time.sleep(SCRAPED_S)
        door.step("s", random_inputs(1, 3))
        time.sleep(SCRAPED_S)
        door.channel.close()
        server.stop()

    with again_and_again(one_life):
        yield address


@contextmanager
def hanging_device(artifact: Path, folder: Path) -> Iterator[str]:
    """The device does not come back from a tick."""
    with open_door(artifact, folder) as door:
        door.create("s")
        healed = threading.Event()
        runner = door.server._models.default.engine.runner
        step = runner.step

        def hang(*arguments: Any) -> Any:
            healed.wait()
            return step(*arguments)

        with mock.patch.object(runner, "step", hang):
            reply = door.stub.Step.future(pb.StepRequest(chunk=chunk("s", random_inputs(1, 2))), timeout=TIMEOUT)
            try:
                yield door.addresses.metrics
            finally:
                healed.set()
                with contextlib.suppress(grpc.RpcError):
                    reply.result(timeout=TIMEOUT)


@contextmanager
def endless_drain(artifact: Path, folder: Path) -> Iterator[str]:
    """A server that has drained and stays."""
    with open_door(artifact, folder) as door:
        door.server.drain(0.1)
        yield door.addresses.metrics


@contextmanager
def flood(artifact: Path, folder: Path) -> Iterator[str]:
    """Chunks come faster than the device, which takes its time, can step them."""
    with open_door(artifact, folder) as door:
        door.create("s")
        runner = door.server._models.default.engine.runner
        step = runner.step

        def slow(*arguments: Any) -> Any:
            time.sleep(0.1)
            return step(*arguments)

        with (
            mock.patch.object(runner, "step", slow),
            again_and_again(lambda: send(door, "s", 8, random_inputs(2, 2))),
        ):
            yield door.addresses.metrics


@contextmanager
def no_room(artifact: Path, folder: Path) -> Iterator[str]:
    """More chunks at once than the queues hold."""
    sessions = [f"s{number}" for number in range(8)]
    with open_door(artifact, folder, max_queued_chunks_total=2) as door:
        for session_id in sessions:
            door.create(session_id)
        messages = [pb.StreamRequest(chunk=chunk(session_id, random_inputs(3, 64))) for session_id in sessions * 5]
        with again_and_again(lambda: door.stream(messages)):
            yield door.addresses.metrics


@contextmanager
def small_memory(artifact: Path, folder: Path) -> Iterator[str]:
    """More sessions in turn than slots and host memory hold."""
    with open_door(artifact, folder, slots=2, host_bytes=2048) as door:
        sessions = [f"s{number}" for number in range(24)]
        for session_id in sessions:
            door.create(session_id)
        assert len(sessions) * door.session("s0").state_bytes > 4 * 2048
        turns = itertools.cycle(sessions)
        with again_and_again(lambda: door.step(next(turns), random_inputs(4, 2))):
            yield door.addresses.metrics


@contextmanager
def slow_disk(artifact: Path, folder: Path) -> Iterator[str]:
    """Each sync takes more than a second."""
    with open_door(artifact, folder, durability="sync", snapshot_every_timesteps=1) as door:
        for session_id in ("a", "b"):
            door.create(session_id)
        store = door.server._models.default.engine.journal.store
        sync = store.sync

        def slow() -> None:
            time.sleep(1.2)
            sync()

        with (
            mock.patch.object(store, "sync", slow),
            again_and_again(lambda: door.step("a", random_inputs(5, 2))),
            again_and_again(lambda: door.step("b", random_inputs(5, 2))),
        ):
            yield door.addresses.metrics


@contextmanager
def failing_device(artifact: Path, folder: Path) -> Iterator[str]:
    """The device raises at each tick."""
    with open_door(artifact, folder) as door:
        door.create("s")
        broken = mock.Mock(side_effect=RuntimeError("device lost"))
        with (
            mock.patch.object(door.server._models.default.engine.runner, "step", broken),
            again_and_again(lambda: door.step("s", random_inputs(6, 2))),
        ):
            yield door.addresses.metrics


@contextmanager
def garbling_device(artifact: Path, folder: Path) -> Iterator[str]:
    """The device computes infinities."""
    with open_door(artifact, folder) as door:
        door.create("s")
        runner = door.server._models.default.engine.runner
        step = runner.step

        def garble(*arguments: Any) -> Any:
            outputs, _ = step(*arguments)
            return [np.full_like(each, np.inf) for each in outputs], [False] * len(outputs)

        with (
            mock.patch.object(runner, "step", garble),
            again_and_again(lambda: door.step("s", random_inputs(6, 2))),
        ):
            yield door.addresses.metrics


@contextmanager
def mistaken_client(artifact: Path, folder: Path) -> Iterator[str]:
    """Chunks of another model's width."""
    wrong = np.zeros((1, INPUT_SIZE + 1), np.float32)
    with open_door(artifact, folder) as door:
        door.create("s")
        with again_and_again(lambda: send(door, "s", 5, wrong)):
            yield door.addresses.metrics


@contextmanager
def damaged_snapshots(artifact: Path, folder: Path) -> Iterator[str]:
    """Snapshots rotted on the disk, and their sessions were computed on another kind of processor."""
    with mock.patch("platform.machine", return_value="of-another-kind"), open_door(artifact, folder) as door:
        door.create("s")
        door.step("s", random_inputs(7, 4))
    with _database(folder) as database:
        for row, state in database.execute("SELECT row, state FROM states").fetchall():
            database.execute("UPDATE states SET state = ? WHERE row = ?", (_flipped(state), row))
    with open_door(artifact, folder) as door:
        door.step("s", random_inputs(8, 4))
        yield door.addresses.metrics


@contextmanager
def damaged_records(artifact: Path, folder: Path) -> Iterator[str]:
    """No snapshot is left, and a record rotted on the disk."""
    with open_door(artifact, folder) as door:
        door.create("s")
        door.step("s", random_inputs(9, 4))
    with _database(folder) as database:
        database.execute("DELETE FROM snapshots")
        for row, body in database.execute("SELECT row, body FROM records").fetchall():
            database.execute("UPDATE records SET body = ? WHERE row = ?", (_flipped(body), row))
    with open_door(artifact, folder) as door, again_and_again(lambda: door.step("s", random_inputs(9, 4))):
        yield door.addresses.metrics


@contextmanager
def lost_store(artifact: Path, folder: Path) -> Iterator[str]:
    """The shared store is killed under the server; it comes back for the end."""
    folder.mkdir()
    port = own_port()
    redis = _start_redis(folder, port)
    try:
        with open_door(artifact, folder / "state", store=f"redis://127.0.0.1:{port}/0") as door:
            door.create("s")
            with again_and_again(lambda: door.step("s", random_inputs(1, 2))):
                time.sleep(SCRAPED_S)
                redis.kill()
                redis.wait()
                yield door.addresses.metrics
            redis = _start_redis(folder, port)
    finally:
        redis.kill()
        redis.wait()


def _start_redis(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """A Redis as a shared store has to be; returns when it listens."""
    settings = {"port": port, "bind": "127.0.0.1", "dir": folder, "appendonly": "yes", "appendfsync": "always"}
    settings |= {"maxmemory-policy": "noeviction", "save": ""}
    arguments = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([program("redis-server", "valkey-server"), *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_open(f"127.0.0.1:{port}") or process.poll() is not None, "redis-server listens")
        assert process.poll() is None, "redis-server does not start"
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


@contextmanager
def _database(folder: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(folder / "sessions.db")) as database, database:
        yield database


def _flipped(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[-3] ^= 4
    return bytes(damaged)
