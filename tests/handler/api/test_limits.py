"""What waits is bounded in bytes too, however few messages it is; what was taken is answered."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.api.syncs import held_syncs
from tests.handler.door import TIMEOUT, chunk, error_info, open_door
from tests.handler.harness import INPUT_SIZE, OUTPUT_SIZE, random_inputs
from tests.handler.scrape import scrape

TIMESTEPS = 1000
CHUNK_BYTES = 4 * TIMESTEPS * (INPUT_SIZE + OUTPUT_SIZE)
STREAM_BYTES = 16 << 20


def test_a_stream_is_not_read_beyond_so_many_bytes(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"s{number}" for number in range(20)]
    with open_door(artifact_folder, tmp_path, durability="sync") as door:
        for name in names:
            door.create(name)
        sent, inputs = 0, random_inputs(0, TIMESTEPS)

        def messages() -> Iterator[pb.StreamRequest]:
            nonlocal sent
            for turn in range(45):
                for name in names:
                    sent += 1
                    yield pb.StreamRequest(chunk=chunk(name, inputs, position=turn * TIMESTEPS))

        with held_syncs(monkeypatch):  # nothing is answered, so that all that is read waits
            stream = door.stub.Stream(messages(), timeout=TIMEOUT)
            at_most = STREAM_BYTES // CHUNK_BYTES + 1
            deadline, still = time.monotonic() + TIMEOUT, 0
            while still < 10:  # until the sender is held back
                before = sent
                time.sleep(0.1)
                assert scrape(door)["dnc_queued_chunks"] <= at_most
                still = still + 1 if sent == before else 0
                assert time.monotonic() < deadline
            assert scrape(door)["dnc_queued_chunks"] >= at_most - 1
            assert sent < 45 * len(names)
            stream.cancel()


def test_all_queues_together_hold_so_many_bytes(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"s{number}" for number in range(10)]
    settings = {"durability": "sync", "max_queued_bytes": 4 * CHUNK_BYTES}
    with open_door(artifact_folder, tmp_path, **settings) as door:
        for name in names:
            door.create(name)
        chunks = [chunk(name, random_inputs(0, TIMESTEPS), position=0) for name in names]
        answers: list[pb.StreamResponse] = []
        with held_syncs(monkeypatch):
            stream = door.stub.Stream(iter([pb.StreamRequest(chunk=one) for one in chunks]), timeout=TIMEOUT)
            answers.extend(islice(stream, 6))  # the refusals: nothing else can be answered
            assert scrape(door)["dnc_queued_chunks"] == 4
        answers += stream
        refused = [answer.error.session_id for answer in answers if answer.HasField("error")]
        assert {error_info(answer.error.status).reason for answer in answers[:6]} == {"QUEUE_FULL"}
        assert len(refused) == 6
        for one in chunks:
            result = door.stub.Step(pb.StepRequest(chunk=one), timeout=TIMEOUT).result
            assert (result.position, result.replayed) == (TIMESTEPS, one.session_id not in refused)


def test_a_chunk_that_is_larger_than_what_may_wait_is_stepped_alone(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path, max_queued_bytes=10) as door:
        door.create("s")
        assert door.step("s", random_inputs(0, 50)).position == 50


def test_looks_at_earlier_positions_take_a_bounded_share_of_memory(artifact_folder: Path, tmp_path: Path) -> None:
    settings = {"slots": 2, "host_bytes": 20_000, "snapshot_every_timesteps": 100_000}
    with open_door(artifact_folder, tmp_path, **settings) as door:
        door.create("s")
        for seed in range(4):
            door.step("s", random_inputs(seed, 100))
        expected = [door.dump("s", position=position)["memory"].tobytes() for position in range(390, 400)]
        most, done = 0.0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.is_set():
                seen = scrape(door)
                most = max(most, seen["dnc_sessions", "slot"] + seen["dnc_sessions", "host"])

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(15) as threads:
            dumps = list(threads.map(lambda look: door.dump("s", position=390 + look % 10), range(30)))
        done.set()
        watcher.join()
        assert [dump["memory"].tobytes() for dump in dumps] == [expected[look % 10] for look in range(30)]
        assert most <= 1 + 3  # the session, and as many looks as a quarter of host memory has room for
