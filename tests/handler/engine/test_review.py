"""Whatever fails or is cut short on the way: each request is answered, and no state is kept but the true one."""

import asyncio
import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.maintenance import Maintenance
from dnc_serve.handler.engine.model_runner import Stepped
from dnc_serve.handler.engine.requests import Chunk, Delete, Inspect, Reset
from dnc_serve.handler.engine.session import Session, Status, Tier
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.contract import Record
from dnc_serve.handler.store.history import recover
from dnc_serve.handler.store.records import decode_record, encode_record
from dnc_serve.model.artifact import Artifact
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.harness import EngineHarness, adopting_engine, random_inputs, running_engine
from tests.waiting import PATIENCE_S, until

LONG = 4096


def config(tmp_path: Path, **settings: object) -> ServeConfig:
    return ServeConfig(state_dir=tmp_path, **settings)  # type: ignore[arg-type]


async def grown(harness: EngineHarness, session_id: str, chunks: int, timesteps: int = 4) -> Session:
    session = await harness.create(session_id)
    for seed in range(chunks):
        await harness.step(session, random_inputs(seed, timesteps))
    return session


def rows_in_use(harness: EngineHarness) -> int:
    rows = harness.engine.cache.rows
    return len(rows.states) - len(rows._free)


async def test_a_look_back_that_is_cut_short_takes_nothing_and_nobody_with_it(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path, snapshot_every_timesteps=10**6, max_chunk_timesteps=LONG)
    async with running_engine(tiles, artifact, settings) as harness:
        looked_at = await grown(harness, "looked-at", 2, timesteps=LONG)
        stranger = await harness.create("stranger")
        in_use = rows_in_use(harness)
        look = asyncio.ensure_future(harness.engine.view_at(looked_at, LONG + 7))
        while not harness.engine.runs:  # its replay is under way
            await asyncio.sleep(0)
        step = asyncio.ensure_future(harness.step(stranger, random_inputs(9, 4)))
        await asyncio.sleep(0)
        look.cancel()
        with suppress(asyncio.CancelledError):
            await look
        assert (await step).position == 4
        await until(lambda: harness.engine.at_rest, "nothing is under way")
        assert rows_in_use(harness) == in_use


async def test_a_look_back_that_finds_the_queue_full_leaves_nothing_behind(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    async with running_engine(tiles, artifact, config(tmp_path, max_queued_chunks_total=2)) as harness:
        session = await grown(harness, "s", 2)
        other = await harness.create("other")
        in_use = rows_in_use(harness)
        look = asyncio.ensure_future(harness.engine.view_at(session, 5))
        await asyncio.sleep(0)
        steps = []
        while not look.done():
            with suppress(ServeError):
                harness.engine.submit(other, Chunk(random_inputs(0, 1), lambda result, error: steps.append(error)))
            await asyncio.sleep(0)
        await until(lambda: harness.engine.at_rest, "nothing is under way")
        assert look.exception() is None or look.exception().reason == "QUEUE_FULL"  # type: ignore[union-attr]
        assert harness.engine.cache.slots_used == 2
        assert rows_in_use(harness) <= in_use


async def test_a_look_back_over_many_resets_is_not_too_much_for_the_queue(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    async with running_engine(tiles, artifact, config(tmp_path)) as harness:
        session = await harness.create("s")
        for seed in range(80):
            await harness.step(session, random_inputs(seed, 1), reset_experience=True)
        seen = await harness.engine.view_at(session, 79)
        assert seen.head.position == 79


async def test_a_past_never_becomes_a_snapshot_of_the_session(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    row_bytes = tiles.layout.size * 4
    settings = config(tmp_path, slots=1, host_bytes=row_bytes, max_chunk_timesteps=LONG)
    async with running_engine(tiles, artifact, settings) as harness:
        engine = harness.engine
        session = await grown(harness, "s", 3)
        busy = [await harness.create(name) for name in ("a", "b")]
        for each in (session, *busy):
            each.become(Status.WAITING)  # nothing can be moved but what is looked at
        before = engine.cache.host_used
        look = asyncio.ensure_future(engine.view_at(session, 6))
        while engine.cache.host_used == before:
            await asyncio.sleep(0.001)
        for _ in range(10):
            await asyncio.sleep(0)
        for each in (session, *busy):
            engine._on_free(each)
        await look
        await engine.snapshots.store_all(list(harness.engine.table))
        truth = await harness.do(session, lambda done: Inspect(done))
        store, standing = engine.journal.store, (session.ordinal, session.position)
        kept = recover(store, "s", session.incarnation, standing, tiles.layout.size)
        assert (kept.ordinal, kept.position) == standing
        assert kept.state is not None
        assert kept.state.tobytes() == truth.state.tobytes()


async def test_a_replay_that_fails_leaves_no_state_to_go_on_from(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, snapshot_every_timesteps=10**6)
    async with running_engine(tiles, artifact, settings) as harness:
        session = await harness.create("s")
        for seed in range(3):
            await harness.step(session, random_inputs(seed, 4), reset_experience=True)
        truth = (await harness.do(session, lambda done: Inspect(done))).state
    async with running_engine(tiles, artifact, settings) as harness:
        engine = harness.engine
        session = engine.table.get("s", "")
        step, calls = tiles.step, []

        def fails_once(*arguments: object) -> Stepped:
            calls.append(arguments)
            if len(calls) == 2:
                raise RuntimeError("out of memory")
            return step(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(tiles, "step", fails_once)
        with pytest.raises(ServeError, match="could not be stepped"):
            await harness.do(session, lambda done: Inspect(done))
        assert session.tier is Tier.STORE
        assert (await harness.do(session, lambda done: Inspect(done))).state.tobytes() == truth.tobytes()


async def test_a_corrupt_session_is_never_stored_and_so_never_believed(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path, slots=1, host_bytes=tiles.layout.size * 4, snapshot_every_timesteps=10**6)
    async with running_engine(tiles, artifact, settings) as harness:
        session = await harness.create("s")
        for seed in range(400):  # as many replays
            await harness.step(session, random_inputs(seed, 1), reset_experience=True)
    with sqlite3.connect(tmp_path / "sessions.db") as database:
        forge_outputs_of_record(database, session, 2)
    async with running_engine(tiles, artifact, settings) as harness:
        session = harness.engine.table.get("s", "")
        with pytest.raises(ServeError) as refused:
            await harness.do(session, lambda done: Inspect(done))
        assert refused.value.reason == "CORRUPT_STATE"
        for name in "abcdef":  # it is pushed out of memory
            await grown(harness, name, 1)
        await harness.engine.snapshots.store_all(list(harness.engine.table))
        assert harness.engine.journal.store.snapshots("s", session.incarnation) == []
        assert harness.engine.at_rest


def forge_outputs_of_record(database: sqlite3.Connection, session: Session, ordinal: int) -> None:
    """Other outputs than were given, with a checksum that fits."""
    [(rowid, body)] = database.execute("SELECT rowid, body FROM records WHERE ordinal = ?", (ordinal,)).fetchall()
    operation = decode_record(Record(session.session_id, session.incarnation, ordinal, 2, 2, 0.0, body))
    forged = encode_record(
        session.session_id, session.incarnation, ordinal, 2, 2, 0.0, operation.fingerprint, operation.inputs,
        operation.outputs + np.float32(0.5), operation.reset, operation.writer_id,
    )  # fmt: skip
    database.execute("UPDATE records SET body = ? WHERE rowid = ?", (forged.body, rowid))


async def test_a_drain_in_the_middle_of_a_replay_stores_no_state_of_its_own_making(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path, snapshot_every_timesteps=10**6, max_chunk_timesteps=LONG)
    async with running_engine(tiles, artifact, settings) as harness:
        session = await grown(harness, "s", 1, timesteps=LONG)
        await harness.step(session, random_inputs(1, 4))
    async with running_engine(tiles, artifact, settings) as harness:
        engine = harness.engine
        session = engine.table.get("s", "")
        peek = asyncio.ensure_future(harness.do(session, lambda done: Inspect(done)))
        while not engine.runs:
            await asyncio.sleep(0)
        await engine.snapshots.store_all(list(harness.engine.table))
        assert engine.journal.store.snapshots("s", session.incarnation) == []
        await peek


async def test_a_copy_whose_only_snapshot_is_damaged_is_refused(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path)
    async with running_engine(tiles, artifact, settings) as harness:
        copy = harness.engine.table.new_session("copy", "", 5, position=40, experience=1)
        begun = asyncio.get_running_loop().create_future()
        state = np.full(tiles.layout.size, 0.25, np.float32)
        harness.engine.lifecycle.begin(copy, state, begun.set_result)
        assert await begun is None
    with sqlite3.connect(tmp_path / "sessions.db") as database:
        [(rowid, content)] = database.execute("SELECT rowid, state FROM states").fetchall()
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 4
        database.execute("UPDATE states SET state = ? WHERE rowid = ?", (bytes(flipped), rowid))
    async with running_engine(tiles, artifact, settings) as harness:
        session = harness.engine.table.get("copy", "")
        with pytest.raises(ServeError) as refused:
            await harness.do(session, lambda done: Inspect(done))
        assert refused.value.reason == "CORRUPT_STATE"


async def test_who_waits_for_the_slot_of_a_session_that_ends_is_told(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path, slots=1, durability="sync")
    async with running_engine(tiles, artifact, settings) as harness:
        waits = await grown(harness, "waits", 1)
        ends = await grown(harness, "ends", 1)
        assert (waits.tier, ends.tier) == (Tier.HOST, Tier.SLOT)
        deleted = asyncio.ensure_future(harness.do(ends, lambda done: Delete(done)))
        while ends.status is not Status.WAITING:
            await asyncio.sleep(0)
        step = asyncio.ensure_future(harness.step(waits, random_inputs(1, 1)))
        assert await deleted
        assert (await asyncio.wait_for(step, PATIENCE_S)).position == 5


async def test_a_row_that_can_not_be_stepped_costs_its_batch_and_holds_up_nobody(
    artifact: Artifact, tmp_path: Path
) -> None:
    in_twos = TileRunner(artifact, "cpu", candidates=(1, 2))
    async with running_engine(in_twos, artifact, config(tmp_path)) as harness:
        bad, *good = [await grown(harness, name, 1) for name in ("bad", "beside it", "behind it")]
        results = await asyncio.gather(
            harness.step(bad, np.zeros((3, 2), np.float32)),
            *(harness.step(session, random_inputs(1, 3)) for session in good),
            return_exceptions=True,
        )
        assert [isinstance(result, ServeError) and result.reason for result in results] == ["INTERNAL"] * 2 + [False]
        assert [session.position for session in (bad, *good)] == [4, 4, 7]
        for session in (bad, *good):
            await harness.step(session, random_inputs(1, 3))
        assert harness.engine.at_rest
        assert rows_in_use(harness) == 3


async def test_debug_that_fails_applies_nothing(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_engine(tiles, artifact, config(tmp_path)) as harness:
        session, other = await grown(harness, "s", 1), await grown(harness, "other", 1)

        def fails(*run: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(tiles, "debug", fails)
        with pytest.raises(ServeError) as refused:
            await harness.step(session, random_inputs(1, 3), debug=True)
        assert refused.value.reason == "INTERNAL"
        assert (await harness.step(session, random_inputs(1, 3), position=4)).position == 7
        assert (await harness.step(other, random_inputs(1, 3))).position == 7


@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_a_store_that_fails_in_an_unknown_way_is_answered_for(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    async with running_engine(tiles, artifact, config(tmp_path, durability=durability)) as harness:
        session = await grown(harness, "s", 1)

        def fails(mutations: object) -> None:
            raise ValueError("what is this?")

        with monkeypatch.context() as broken:
            broken.setattr(harness.engine.journal.store, "commit", fails)
            with pytest.raises(ServeError) as refused:
                await harness.step(session, random_inputs(1, 3))
            assert refused.value.reason == "INTERNAL"
            with pytest.raises(ServeError):
                await harness.do(session, lambda done: Reset("experience", done))
        assert (await harness.step(session, random_inputs(1, 3), position=4)).position == 7


async def test_a_session_that_leaves_while_it_is_asked_for_answers(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path, slots=1, host_bytes=tiles.layout.size * 4)
    async with adopting_engine(tiles, artifact, settings) as harness:
        engine, asked = harness.engine, 0
        positions = dict.fromkeys("abcd", 0)

        async def drive(name: str) -> None:
            nonlocal asked
            while positions[name] < 40:
                try:
                    await engine.ownership.adopt(name, "")
                    session = engine.table.find(name) or await harness.create(name)
                    applied = await harness.step(session, random_inputs(0, 1), position=positions[name])
                    assert applied.position == positions[name] + 1
                    positions[name] = applied.position
                except ServeError as error:
                    assert error.reason in ("NOT_READY", "SESSION_NOT_FOUND")
                asked += 1

        await asyncio.wait_for(asyncio.gather(*map(drive, positions)), PATIENCE_S)
        assert set(positions.values()) == {40}
        await until(lambda: engine.at_rest, "nothing is under way")


async def test_work_that_came_when_a_session_was_given_up_is_told(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    async with adopting_engine(tiles, artifact, config(tmp_path)) as harness:
        session = await grown(harness, "s", 1)
        step = asyncio.ensure_future(harness.step(session, random_inputs(1, 1)))
        await asyncio.sleep(0)
        await harness.engine.ownership.give_up([session])
        with suppress(ServeError):
            await asyncio.wait_for(step, PATIENCE_S)
        assert step.done()
        await until(lambda: harness.engine.at_rest, "nothing is under way")
        assert rows_in_use(harness) == 0


async def test_a_session_lost_in_the_middle_of_its_reset_keeps_nothing_here(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    async with adopting_engine(tiles, artifact, config(tmp_path)) as harness:
        for scope in ("experience", "all"):
            session = await grown(harness, scope, 1)
            other = await grown(harness, f"beside {scope}", 1)
            reset = asyncio.ensure_future(harness.do(session, lambda done, scope=scope: Reset(scope, done)))
            while session.status is not Status.WAITING:
                await asyncio.sleep(0)
            harness.engine.ownership.lose(session)
            assert await reset is True
            assert (await harness.step(other, random_inputs(1, 1))).position == 5
            assert session.tier is Tier.STORE
        assert rows_in_use(harness) == 2


async def test_of_two_that_begin_the_same_session_one_does(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    async with adopting_engine(tiles, artifact, config(tmp_path)) as harness:
        operations = Operations(harness.engine, artifact, "epoch", harness.metrics)
        request = pb.CreateSessionRequest(session_id="s")
        results = await asyncio.gather(
            *(operations.create_session(request, Caller()) for _ in range(8)), return_exceptions=True
        )
        assert sum(isinstance(result, pb.CreateSessionResponse) for result in results) == 1
        assert {result.reason for result in results if isinstance(result, ServeError)} == {"SESSION_EXISTS"}
        assert harness.engine.table.count_of("") == len(harness.engine.table) == 1


async def test_a_session_that_never_goes_idle_keeps_no_other_from_its_end(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path, max_age_s=0.001, max_queued_chunks=1)
    async with running_engine(tiles, artifact, settings) as harness:
        full, old = await grown(harness, "full", 1), await grown(harness, "old", 1)
        await asyncio.sleep(0.01)
        step = asyncio.ensure_future(harness.step(full, random_inputs(1, 1)))
        await asyncio.sleep(0)
        Maintenance(harness.engine).expire()
        await step
        await until(lambda: old.ended, "the old one has ended")


async def test_how_far_a_journal_reaches_can_be_asked_when_its_first_record_is_damaged(
    tiles: TileRunner, artifact: Artifact, tmp_path: Path
) -> None:
    settings = config(tmp_path)
    async with running_engine(tiles, artifact, settings) as harness:
        await grown(harness, "s", 1)
    with sqlite3.connect(tmp_path / "sessions.db") as database:
        [(rowid, body)] = database.execute("SELECT rowid, body FROM records").fetchall()
        database.execute("UPDATE records SET body = ? WHERE rowid = ?", (bytes((body[0] ^ 1, *body[1:])), rowid))
    async with running_engine(tiles, artifact, settings) as harness:
        session = harness.engine.table.get("s", "")
        assert await harness.engine.recovery.earliest_position(session.session_id, session.incarnation) is None
